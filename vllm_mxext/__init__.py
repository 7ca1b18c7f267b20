"""An LLM inference server with its own engine: one command serves a model on any machine."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm_mxext.beam_search_params import BeamSearchParams
    from vllm_mxext.constraint_params import GuidedDecodingParams, StructuredOutputsParams
    from vllm_mxext.engine.async_llm_engine import AsyncLLMEngine
    from vllm_mxext.engine.engine_args import EngineArgs
    from vllm_mxext.engine.llm_engine import LLMEngine
    from vllm_mxext.entrypoints.llm import LLM
    from vllm_mxext.logits_processors import LogitsProcessor
    from vllm_mxext.outputs import (
        BeamSearchOutput,
        BeamSearchSequence,
        CompletionOutput,
        Logprob,
        RequestMetrics,
        RequestOutput,
    )
    from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, LoRARequest, TextPrompt, TokensPrompt
    from vllm_mxext.sampling_params import OutputKind, SamplingParams

_EXPORTS = {
    "AsyncLLMEngine": "vllm_mxext.engine.async_llm_engine",
    "BeamSearchOutput": "vllm_mxext.outputs",
    "BeamSearchParams": "vllm_mxext.beam_search_params",
    "BeamSearchRequest": "vllm_mxext.requests",
    "BeamSearchSequence": "vllm_mxext.outputs",
    "CompletionOutput": "vllm_mxext.outputs",
    "EngineArgs": "vllm_mxext.engine.engine_args",
    "GenerateRequest": "vllm_mxext.requests",
    "GuidedDecodingParams": "vllm_mxext.constraint_params",
    "LLM": "vllm_mxext.entrypoints.llm",
    "LLMEngine": "vllm_mxext.engine.llm_engine",
    "LoRARequest": "vllm_mxext.requests",
    "LogitsProcessor": "vllm_mxext.logits_processors",
    "Logprob": "vllm_mxext.outputs",
    "OutputKind": "vllm_mxext.sampling_params",
    "RequestMetrics": "vllm_mxext.outputs",
    "RequestOutput": "vllm_mxext.outputs",
    "SamplingParams": "vllm_mxext.sampling_params",
    "StructuredOutputsParams": "vllm_mxext.constraint_params",
    "TextPrompt": "vllm_mxext.requests",
    "TokensPrompt": "vllm_mxext.requests",
}
"""Exported name -> module it is imported from on first use."""

_ALIASES = {"AsyncEngineArgs": "EngineArgs", "AsyncLLM": "AsyncLLMEngine"}
"""Names that vLLM has for the same things."""

__all__ = [
    "LLM",
    "AsyncLLMEngine",
    "BeamSearchOutput",
    "BeamSearchParams",
    "BeamSearchRequest",
    "BeamSearchSequence",
    "CompletionOutput",
    "EngineArgs",
    "GenerateRequest",
    "GuidedDecodingParams",
    "LLMEngine",
    "LoRARequest",
    "LogitsProcessor",
    "Logprob",
    "OutputKind",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "StructuredOutputsParams",
    "TextPrompt",
    "TokensPrompt",
]


def __getattr__(name: str) -> Any:
    name = _ALIASES.get(name, name)
    if name not in _EXPORTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_EXPORTS[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
