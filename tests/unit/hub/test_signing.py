"""Signatures of models: what each rule does, and what the real package says to good and bad ones."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import json
import logging
import sys
from pathlib import Path

import pytest

from tests.unit.hub.store_files import publish
from vllm_mxext.errors import HubCause, MissingDependencyError, UnsafeFileError
from vllm_mxext.hub.manifest.model import Security, SignatureRule
from vllm_mxext.hub.signing import check_signature
from vllm_mxext.hub.store.model_store import ModelStore

FILES = {"config.json": b"{}", "a/model.txt": b"x" * 100}
IDENTITY = Security(signature="require", identity="me@example.org", identity_provider="https://example.org")


def refusal(folder: Path, security: Security, **options: bool) -> str:
    with pytest.raises(UnsafeFileError) as caught:
        check_signature("m", folder, security, **options)
    assert caught.value.cause is HubCause.UNSAFE
    assert "allow this one with --model-signature warn" in str(caught.value)
    return str(caught.value)


def test_nothing_is_verified_unless_that_is_asked_for(tmp_path: Path) -> None:
    assert not check_signature("m", tmp_path / "missing", Security(signature="off"))


@pytest.mark.promise("HUB-SIGN-1")
def test_a_missing_signature_is_warned_of_or_refused(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert "is not verified: there is no model.sig" in refusal(tmp_path, IDENTITY)
    with caplog.at_level(logging.WARNING, "vllm_mxext"):
        logging.getLogger("vllm_mxext").addHandler(caplog.handler)
        assert not check_signature("m", tmp_path, Security(signature="warn"))
        logging.getLogger("vllm_mxext").removeHandler(caplog.handler)
    assert "The signature of m is not verified: there is no model.sig." in caplog.messages
    for name in ("a.sig", "b.sig"):
        (tmp_path / name).write_text("{}")
    assert "there are several, and none is model.sig" in refusal(tmp_path, IDENTITY)


@pytest.mark.promise("HUB-SIGN-1")
def test_without_the_package_a_required_signature_says_how_to_install_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "model.sig").write_text("{}")
    monkeypatch.setitem(sys.modules, "model_signing", None)
    monkeypatch.setitem(sys.modules, "model_signing.verifying", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'vllm_mxext\[signing\]'"):
        check_signature("m", tmp_path, IDENTITY)
    assert not check_signature("m", tmp_path, Security(signature="warn"))


def make_keys(folder: Path) -> tuple[Path, Path]:
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "key", folder / "key.pub"
    folder.mkdir(exist_ok=True)
    private.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.mark.optional
@pytest.mark.promise("HUB-SIGN-1")
@pytest.mark.skipif(importlib.util.find_spec("model_signing") is None, reason="model-signing is not installed")
@pytest.mark.parametrize("form", ["files", "shards"])
def test_a_stored_model_is_verified_with_the_key_that_signed_it(tmp_path: Path, form: str) -> None:
    signing = importlib.import_module("model_signing.signing")
    hashing = importlib.import_module("model_signing.hashing")
    private, public = make_keys(tmp_path / "mine")
    original = tmp_path / "original"
    for path, content in FILES.items():
        (original / path).parent.mkdir(parents=True, exist_ok=True)
        (original / path).write_bytes(content)
    how = hashing.Config()
    if form == "shards":
        how.use_shard_serialization(hashing_algorithm="sha256", shard_size=64)
    config = signing.Config().use_elliptic_key_signer(private_key=private).set_hashing_config(how)
    config.sign(original, tmp_path / "model.sig")
    signature = (tmp_path / "model.sig").read_bytes()
    store = ModelStore(tmp_path / "store")
    rule: SignatureRule = "require"
    security = Security(signature=rule, public_key=str(public))

    folder = publish(store, "m", "r", {**FILES, "model.sig": signature}).folder
    assert check_signature("m", folder, security, is_offline=True)
    _, other = make_keys(tmp_path / "others")
    assert "does not match the provided public key" in refusal(folder, Security(signature=rule, public_key=str(other)))
    assert "key '/nowhere' is not there" in refusal(folder, Security(signature=rule, public_key="/nowhere"))
    assert "does not say who has to have signed" in refusal(folder, Security(signature=rule))
    assert "only be verified with a connection" in refusal(folder, IDENTITY, is_offline=True)

    changed = publish(store, "m", "r2", {**FILES, "config.json": b"{ }", "model.sig": signature}).folder
    assert "Hash mismatch for 'config.json" in refusal(changed, security) or form == "shards"
    extra = publish(store, "m", "r3", {**FILES, "extra": b"", "extra2": b"x", "model.sig": signature}).folder
    assert "Extra files: " in refusal(extra, security)
    missing = publish(store, "m", "r4", {"config.json": b"{}", "model.sig": signature}).folder
    assert "Missing files: a/model.txt" in refusal(missing, security)
    envelope = json.loads(signature)["dsseEnvelope"]
    changed_payload = base64.b64decode(envelope["payload"]).replace(b"config.json", b"konfig.json")
    other_payload = signature.replace(envelope["payload"].encode(), base64.b64encode(changed_payload))
    for content in (b"", b"{}", b"[]", signature[:-100], other_payload):
        broken = publish(store, "m", "r5", {**FILES, "model.sig": content}).folder
        assert "The signature of m is not verified: " in refusal(broken, security)
