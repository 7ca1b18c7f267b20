"""A model's files, hubs that serve them, and retries without waiting."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.hub_servers.model_files import write_model
from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.stand_in import Answer, Asked, StandIn


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model")


@pytest.fixture
def hub(model: Path) -> Iterator[ModelHub]:
    with ModelHub() as running:
        running.add("acme/tiny", model)
        yield running


@pytest.fixture
def impatient() -> Iterator[None]:
    """Retries come at once."""
    import stamina

    with stamina.set_testing(True, attempts=3, cap=True):
        yield


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for `localhost` that nobody trusts, with its key in the same file."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl to make a certificate")
    file = tmp_path_factory.mktemp("tls") / "localhost.pem"
    subprocess.run(
        [
            "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
            "-days", "2", "-subj", "/CN=localhost",
            "-addext", "subjectAltName=DNS:localhost", "-keyout", str(file), "-out", "-",
        ],
        check=True, stderr=subprocess.DEVNULL, stdout=(file.parent / "cert.pem").open("wb"),
    )  # fmt: skip
    file.write_bytes(file.read_bytes() + (file.parent / "cert.pem").read_bytes())
    return file


class TlsServer(StandIn):
    """Answers everything with the same bytes."""

    def answer(self, asked: Asked) -> Answer:
        return Answer(200, {"ETag": '"1"'}, b"over TLS")


@pytest.fixture
def untrusted(certificate: Path) -> Iterator[str]:
    """URL of an https server with that certificate."""
    with TlsServer("localhost", certificate) as running:
        yield running.url
