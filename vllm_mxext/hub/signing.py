"""Whether a model is signed by whom it should be, with OpenSSF model signing (package `model-signing`).

The signature is a Sigstore bundle in the model's folder, `model.sig` or the only `*.sig`. It covers all files: a pull
that leaves some out cannot be verified.
"""

from __future__ import annotations

import base64
import importlib
import json
import re
from pathlib import Path
from typing import Any

from vllm_mxext.errors import MissingDependencyError, UnsafeFileError
from vllm_mxext.hub.manifest.model import Security
from vllm_mxext.hub.store.layout import SNAPSHOT
from vllm_mxext.logger import init_logger

logger = init_logger(__name__)

SIGNATURE = "model.sig"

_INSTALL = "pip install 'vllm_mxext[signing]'"
_FINDING = re.compile(r"(Extra files|Missing files|Hash mismatch for '[^']*')(?:[^:]*: ([^\"\]]*))?")


class _RefusedError(Exception):
    """Why a signature is not good enough."""


def check_signature(name: str, folder: Path, security: Security, *, is_offline: bool = False) -> bool:
    """Verifies the signature of a model's files as they are now, if that is asked for.

    Args:
        name: of the model, for messages.
        folder: its files.
        security: rule, and who has to have signed: a public key, or an identity and its provider.
        is_offline: no connection may be opened, which signatures of identities need.

    Returns:
        Whether it is verified; false if the rule is `off`, or it is `warn` and a warning was logged.

    Raises:
        UnsafeFileError: the rule is `require`, and there is no signature, or not a good one.
        MissingDependencyError: the rule is `require`, and the package is not installed.
    """
    if security.signature == "off":
        return False
    is_required = security.signature == "require"
    try:
        _verify(folder, security, is_offline=is_offline)
    except ImportError as error:
        text = f"The signature of {name} cannot be verified ({error}); install what it takes with: {_INSTALL}"
        if is_required:
            raise MissingDependencyError(text) from error
    except _RefusedError as error:
        text = f"The signature of {name} is not verified: {error}."
        if is_required:
            raise UnsafeFileError(
                f"{text[:-1]}; take a model that is signed by whom the manifest names, or allow this one with "
                "--model-signature warn."
            ) from error
    else:
        return True
    logger.warning("%s", text)
    return False


def _verify(folder: Path, security: Security, *, is_offline: bool) -> None:
    signature = _signature_file(folder)
    _check_signer(security, is_offline=is_offline)
    verifying: Any = importlib.import_module("model_signing.verifying")
    hashing: Any = importlib.import_module("model_signing.hashing")
    try:
        config = verifying.Config()
        if security.public_key:
            config.use_elliptic_key_verifier(public_key=security.public_key)
        else:
            config.use_sigstore_verifier(identity=security.identity, oidc_issuer=security.identity_provider)
        config.set_hashing_config(_hashing(hashing, signature))
        config.verify(folder, signature)
    except Exception as error:  # the library raises what its parsers and its network raise
        raise _RefusedError(_reason(error)) from error


def _check_signer(security: Security, *, is_offline: bool) -> None:
    if security.public_key:
        if not Path(security.public_key).is_file():
            raise _RefusedError(f"the key '{security.public_key}' is not there")
    elif not (security.identity and security.identity_provider):
        raise _RefusedError(
            "the manifest does not say who has to have signed (`public_key`, or `identity` and `identity_provider`)"
        )
    elif is_offline:
        raise _RefusedError("identities can only be verified with a connection; use a public key, or verify before")


def _signature_file(folder: Path) -> Path:
    files = sorted(folder.glob("*.sig"))
    named = [file for file in files if file.name == SIGNATURE]
    if len(named or files) != 1:
        raise _RefusedError(f"there is no {SIGNATURE}" if not files else f"there are several, and none is {SIGNATURE}")
    return (named or files)[0]


def _hashing(hashing: Any, signature: Path) -> Any:
    """Returns how files are hashed: as the signature says, but with links, which a store has.

    What is read here is not verified yet; verification compares the digests that result with those that were signed.
    """
    envelope = json.loads(signature.read_bytes())["dsseEnvelope"]
    how = json.loads(base64.b64decode(envelope["payload"]))["predicate"]["serialization"]
    config = hashing.Config()
    if how["method"] == "shards":
        config.use_shard_serialization(hashing_algorithm=how["hash_type"], shard_size=int(how["shard_size"]))
    else:
        config.use_file_serialization(hashing_algorithm=how["hash_type"])
    return config.set_allow_symlinks(True).set_ignored_paths(paths=[signature.name, SNAPSHOT])


def _reason(error: Exception) -> str:
    """One short phrase for what the library says."""
    findings = [f"{kind}: {names}" if names else kind for kind, names in _FINDING.findall(str(error))]
    text = "; ".join(findings) or " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return f"{text[:200]} ({type(error).__name__})" if not findings else text[:300]
