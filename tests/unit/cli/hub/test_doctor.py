"""`mxext hub doctor` finds each kind of trouble and says the remedy."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.hub_servers.model_hub import ModelHub
from tests.unit.cli.hub.conftest import MANIFEST, NAME, Run
from tests.unit.cli.hub.test_stored import WEIGHTS
from vllm_mxext.findings import Finding, Level
from vllm_mxext.hub.doctor import environment_checks, folder_checks
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.store import locks

pytestmark = pytest.mark.promise("HUB-CLI-3")

GIB = 1 << 30


def findings(mxext: Run, *argv: str, level: str = "problem") -> dict[str, str]:
    """Runs the doctor; returns subject -> text and remedy of what is as bad as that."""
    printed = mxext("doctor", *argv, "--json")
    found: list[dict[str, str]] = printed.json["findings"]
    assert printed.code == (1 if any(one["level"] == "problem" for one in found) else 0)
    assert printed.json["ok"] == (printed.code == 0)
    for one in found:
        assert (one["level"] == "ok") == (one["remedy"] == "")
    return {one["subject"]: f"{one['text']} {one['remedy']}" for one in found if one["level"] == level}


def test_a_machine_in_order_has_no_finding(mxext: Run) -> None:
    printed = mxext("doctor", "tiny")
    assert printed.code == 0
    assert printed.out.endswith("0 problems, 0 warnings.\n")
    assert f"hf://{NAME} answers and lists" in printed.out
    assert mxext("pull", "tiny", "--quiet").code == 0
    assert "All that is stored has its files." in mxext("doctor").out


def test_offline_no_socket_is_opened(mxext: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    assert "--offline is given" in findings(mxext, "tiny", "--offline", level="warning")["offline"]
    monkeypatch.setenv("MIM_OFFLINE", "1")
    assert "MIM_OFFLINE is set" in findings(mxext, "acme/unheard-of", level="warning")["offline"]


def name_unknown(*_: Any, **__: Any) -> None:
    raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")


def test_missing_tokens_and_unreachable_sources_are_told_with_their_remedy(
    mxext: Run, hub: ModelHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for restriction in ("is_private", "is_gated"):
        hub.add(NAME, tmp_path / "origin", **{restriction: True})
        assert "HF_TOKEN" in findings(mxext, "tiny")["source"]
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "Check the network" in findings(mxext, "tiny")["source"]
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", "other.example")
    assert "the proxy of HTTP_PROXY: check it" in findings(mxext, "tiny")["source"]
    monkeypatch.setenv("HF_ENDPOINT", hub.url.replace("http", "https"))
    assert "certificate" in findings(mxext, "tiny")["source"]
    monkeypatch.delenv("HTTP_PROXY")
    monkeypatch.delenv("NO_PROXY")
    monkeypatch.setenv("HF_ENDPOINT", "http://nowhere.invalid")
    monkeypatch.setattr(socket, "getaddrinfo", name_unknown)
    assert "this machine's DNS" in findings(mxext, "tiny")["source"]


def test_a_model_that_cannot_run_or_is_unknown_is_told(mxext: Run, home: Path) -> None:
    assert "mxext hub explain" in findings(mxext, "tiny", "--profile", "gpu")["profile"]
    assert "no profile 'nope'" in findings(mxext, "tiny", "--profile", "nope")["profile"]
    assert "did you mean tiny" in findings(mxext, "tinny")["model"]
    (home / "model_manifest.yaml").write_text(MANIFEST.replace("license:", "licens:"))
    assert "model_manifest.yaml:5: " in findings(mxext, "tiny")["manifest"]


def test_damaged_models_and_forgotten_downloads_are_told(mxext: Run, store: Path) -> None:
    folder = Path(mxext("pull", "tiny", "--quiet").out.strip())
    (folder / WEIGHTS).resolve().unlink()
    assert f"mxext hub repair {NAME}/weights" in findings(mxext)["stored models"]
    forgotten = store / "partial" / "abc" / "data"
    forgotten.parent.mkdir(parents=True)
    forgotten.write_bytes(b"x" * 4096)
    os.utime(forgotten, (1_000_000_000, 1_000_000_000))
    assert "mxext hub gc" in findings(mxext, level="warning")["partial files"]


def test_variables_that_change_how_sources_are_reached_are_told(
    mxext: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://user:password@proxy.example:3128")
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
    monkeypatch.setenv("MIM_MODEL_PROFIL", "x")
    assert "Correct or unset SSL_CERT_FILE" in findings(mxext, "--offline")["certificates"]
    assert "MIM_MODEL_PROFILE" in findings(mxext, "--offline", level="warning")["variables"]
    proxy = findings(mxext, "--offline", level="ok")["proxy"]
    assert "password" not in mxext("doctor", "--offline").out
    assert proxy


def texts(found: list[Finding] | Iterator[Finding], level: Level) -> str:
    return " ".join(f"{one.text} {one.remedy}" for one in found if one.level is level)


def without(denied: Path, right: int = os.W_OK) -> folder_checks.Access:
    """Returns `os.access` of a user who has not that right."""
    return lambda path, mode: not (path == denied and mode & right) and os.access(path, mode)


def test_wrong_permissions_of_the_store_and_of_what_leads_to_it_are_problems(tmp_path: Path) -> None:
    store = tmp_path / "a" / "store"
    missing = folder_checks.check_access(store, must_write=True, access=without(tmp_path))
    assert f"nothing may be written in '{tmp_path}'" in texts(missing, Level.PROBLEM)
    assert texts(folder_checks.check_access(store, must_write=True), Level.PROBLEM) == ""
    (store / "blobs").mkdir(parents=True)
    (store / "blobs" / "sha256-x").write_bytes(b"")
    blocked = folder_checks.check_access(store, must_write=True, access=without(store.parent, os.X_OK))
    assert f"'{store.parent}' on the way to '{store}' may not be entered" in texts(blocked, Level.PROBLEM)
    unreadable = folder_checks.check_access(store, must_write=True, access=without(store, os.R_OK))
    assert "cannot be read" in texts(unreadable, Level.PROBLEM)
    file = without(store / "blobs" / "sha256-x", os.R_OK)
    assert "another user made them" in texts(
        folder_checks.check_access(store, must_write=True, access=file), Level.PROBLEM
    )
    for folder in (store, store / "blobs"):
        for must_write, level in ((True, Level.PROBLEM), (False, Level.WARNING)):
            found = folder_checks.check_access(store, must_write=must_write, access=without(folder))
            assert f"Nothing can be stored in '{folder}'" in texts(found, level)
    store.chmod(0o777)
    assert "chmod o-w" in texts(folder_checks.check_access(store, must_write=True), Level.WARNING)
    assert "no folder" in texts(
        folder_checks.check_access(store / "blobs" / "sha256-x", must_write=True), Level.PROBLEM
    )
    under_a_file = folder_checks.check_access(store / "blobs" / "sha256-x" / "store", must_write=True)
    assert "is a file, not a folder" in texts(under_a_file, Level.PROBLEM)
    (store / "layout").write_text("999\n")
    assert "newer version" in texts(folder_checks.check_access(store, must_write=True), Level.PROBLEM)


def test_a_full_disk_and_one_too_small_for_the_model_are_problems(tmp_path: Path) -> None:
    assert folder_checks.check_space(tmp_path, 100 * GIB, 20 * GIB, "acme/tiny").level is Level.OK
    for free, needed in ((GIB // 2, 0), (10 * GIB, 20 * GIB)):
        found = folder_checks.check_space(tmp_path, free, needed, "acme/tiny")
        assert found.level is Level.PROBLEM
        assert "mxext hub gc" in found.remedy


def test_locks_that_do_nothing_are_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert folder_checks.check_locks(tmp_path).level is Level.OK

    @contextlib.contextmanager
    def useless(*_: Any, **__: Any) -> Iterator[locks.Lock]:
        yield locks.Lock(works=False)

    monkeypatch.setattr(locks, "holding", useless)
    found = folder_checks.check_locks(tmp_path)
    assert (found.level, "nolock" in found.remedy) == (Level.WARNING, True)


def test_missing_packages_are_told_with_the_command_that_installs_them() -> None:
    def check(**facts: Any) -> str:
        found = environment_checks.check_packages(**{"schemes": ["hf"], **facts}, is_there=lambda _: None)
        return texts(found, Level.PROBLEM)

    assert check() == ""
    assert "pip install 'vllm_mxext[s3]'" in check(schemes=["s3", "hf"])
    assert "pip install 'vllm_mxext[signing]'" in check(needs_signing=True)
    assert "httpx[socks]" in check(uses_socks=environment_checks.uses_socks({"ALL_PROXY": "socks5://proxy:1080"}))


def test_what_hardware_could_not_be_looked_at_is_a_warning() -> None:
    hardware = Hardware("a box", notes=("NVML cannot be initialised: the driver is not loaded.",))
    assert "the driver is not loaded" in texts(environment_checks.check_hardware(hardware), Level.WARNING)
