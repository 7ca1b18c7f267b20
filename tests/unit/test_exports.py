"""Names that programs import from the package."""

from __future__ import annotations

import subprocess
import sys

import pytest

import vllm_mxext

EXPORTED = {
    "LLM", "AsyncLLMEngine", "BeamSearchOutput", "BeamSearchParams", "BeamSearchRequest", "BeamSearchSequence",
    "CompletionOutput", "EngineArgs", "GenerateRequest", "GuidedDecodingParams", "LLMEngine", "LoRARequest",
    "LogitsProcessor", "Logprob", "OutputKind", "RequestMetrics", "RequestOutput", "SamplingParams",
    "StructuredOutputsParams", "TextPrompt", "TokensPrompt",
}  # fmt: skip


@pytest.mark.promise("ENG-1", "ENG-2")
def test_the_package_exports_exactly_its_documented_names() -> None:
    assert set(vllm_mxext.__all__) == EXPORTED
    assert set(dir(vllm_mxext)) >= EXPORTED
    for name in EXPORTED:
        assert getattr(vllm_mxext, name).__name__ == name


@pytest.mark.promise("ENG-2")
def test_names_of_vllm_mean_the_same() -> None:
    assert vllm_mxext.AsyncLLM is vllm_mxext.AsyncLLMEngine
    assert vllm_mxext.AsyncEngineArgs is vllm_mxext.EngineArgs


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'LLLM'"):
        _ = vllm_mxext.LLLM


@pytest.mark.promise("CLI-2")
def test_importing_the_package_imports_nothing_heavy() -> None:
    code = "import sys, vllm_mxext; sys.exit(bool({'torch', 'numpy', 'msgspec', 'zmq'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
