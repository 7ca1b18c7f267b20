"""What a person reads when a source misbehaves while `mxext hub pull` runs, and what is stored then: nothing half."""

from __future__ import annotations

import pytest

from tests.hub_servers.model_hub import ModelHub
from tests.hub_servers.stand_in import Fault
from tests.unit.cli.hub.conftest import Run
from vllm_mxext import builtin

pytestmark = pytest.mark.promise("HUB-TRANSFER-2", "HUB-CLI-2")

MODEL = "hf://acme/real"


@pytest.mark.parametrize(
    ("fault", "code", "words"),
    [
        (Fault(flips=5_000_000, times=None), 6, "use another source"),
        (Fault(is_page=True, times=None), 3, "open the address in a browser, or check HTTPS_PROXY"),
        (Fault(cuts_at=0, times=None), 3, "broke"),
        (Fault(resets_at=1000, times=None), 3, "try again"),
        (Fault(stalls_at=0, times=None), 3, "--download-stall-timeout"),
        (Fault(shifts_range=5, times=None), 3, "other bytes of 'model.safetensors' than were asked for"),
        (Fault(encoding="gzip", times=None), 1, "switch compression off there or in the proxy"),
        (Fault(status=403, times=None), 3, "a proxy or firewall"),
        (Fault(status=503, times=None), 3, "try again in some minutes"),
        (Fault(status=429, retry_after="3600", times=None), 3, "try again in 60 minutes"),
    ],
)
def test_trouble_is_one_sentence_that_says_what_to_do(
    fault: Fault, code: int, words: str, mxext: Run, hub: ModelHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    if fault.stalls_at is not None:
        monkeypatch.setenv("VLLM_MXEXT_DOWNLOAD_STALL_TIMEOUT", "0.1")
    hub.add("acme/real", builtin.model_path())
    hub.cdn.fails(fault)
    printed = mxext("pull", MODEL, "--quiet")
    assert printed.code == code
    (line,) = printed.err.splitlines()
    assert words in line
    assert mxext("list", "--json").json["models"] == []
    hub.cdn.heals()
    monkeypatch.delenv("VLLM_MXEXT_DOWNLOAD_STALL_TIMEOUT", raising=False)
    assert mxext("pull", MODEL, "--quiet").code == 0
    assert mxext("verify", "--quiet").code == 0
