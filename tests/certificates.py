"""A certificate for 127.0.0.1 that nobody but a test trusts."""

from __future__ import annotations

import subprocess
from pathlib import Path

from vllm_mxext.config.server import TlsConfig


def make_certificate(folder: Path) -> TlsConfig:
    """Writes certificate and key into the folder."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
         "-keyout", key, "-out", cert, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=IP:127.0.0.1"],
        check=True, capture_output=True,
    )  # fmt: skip
    return TlsConfig(cert, key)
