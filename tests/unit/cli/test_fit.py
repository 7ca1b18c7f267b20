"""`mxext fit` says whether a model fits, without loading it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.engine_fakes import write_tiny_checkpoint
from vllm_mxext.cli.main import main

pytestmark = pytest.mark.promise("CLI-5")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"))  # a folder without weights


def test_the_plan_and_the_kernels_are_printed_with_their_reasons(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(checkpoint), "--max_num_seqs", "3"]) == 0
    printed = capsys.readouterr().out
    for part in ("LlamaForCausalLM", "weights", "KV cache", "3 requests at once", "kernels", "(checkpoint)"):
        assert part in printed


def test_json_has_the_same(
    checkpoint: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_MXEXT_CPU_ISA", "torch")
    assert main(["fit", "--json", str(checkpoint)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["fits"]
    assert report["problem"] is None
    memory = report["memory"]
    assert memory["total_bytes"] == memory["weights_bytes"] + memory["activation_bytes"] + memory["kv_cache_bytes"]
    assert report["kernels"] == {"name": "torch", "reason": "the variable VLLM_MXEXT_CPU_ISA names it"}
    assert report["choices"]["dtype"] == {"value": "bfloat16", "reason": "checkpoint"}


def test_a_model_that_does_not_fit_is_exit_code_1_with_a_suggestion(
    checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["fit", str(checkpoint), "--gpu-memory-utilization", "0.000001"]) == 1
    assert "does not fit" in capsys.readouterr().out
    assert main(["fit", str(checkpoint), "--gpu-memory-utilization", "0.000001", "--json"]) == 1
    report = json.loads(capsys.readouterr().out)
    assert (report["fits"], report["memory"]) == (False, None)


def test_wrong_flags_are_wrong_usage(checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", str(checkpoint), "--max-modl-len", "3"]) == 2
    assert "did you mean" in capsys.readouterr().err
