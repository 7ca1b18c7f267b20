"""Puts together what checks structured output for an engine client."""

from __future__ import annotations

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.frontend import StructuredOutputsConfig
from vllm_mxext.native.structured.admission import GrammarAdmission
from vllm_mxext.native.structured.checker import CompileCheck, GrammarChecker
from vllm_mxext.native.structured.compilation import LocalCheck
from vllm_mxext.native.structured.vocabulary import end_token_ids, make_vocabulary
from vllm_mxext.tokenizer.interface import Tokenizer


def make_grammar_admission(
    config: EngineConfig, tokenizer: Tokenizer, defaults: StructuredOutputsConfig, check: CompileCheck | None = None
) -> GrammarAdmission:
    """Makes the admission of grammars; by default they are tried in a process of its own.

    Args:
        config: the engine.
        tokenizer: the model's tokenizer.
        defaults: the server's whitespace and property rules.
        check: tries grammars.
    """
    model = config.model
    ends = end_token_ids(model.spec, tokenizer)
    return GrammarAdmission(
        tokenizer,
        check or GrammarChecker(model.tokenizer_path, model.spec.vocab_size, ends),
        end_token_ids=ends,
        disable_any_whitespace=defaults.disable_any_whitespace,
        disable_additional_properties=defaults.disable_additional_properties,
    )


def local_check(config: EngineConfig, tokenizer: Tokenizer) -> LocalCheck:
    """Makes a check in this process, for callers who bring their own grammars."""
    spec = config.model.spec
    return LocalCheck(lambda: make_vocabulary(tokenizer, spec.vocab_size, end_token_ids(spec, tokenizer)))
