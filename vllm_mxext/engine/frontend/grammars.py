"""Puts together what checks structured output for an engine client."""

from __future__ import annotations

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.frontend import StructuredOutputsConfig
from vllm_mxext.native.structured.admission import GrammarAdmission
from vllm_mxext.native.structured.checker import GrammarChecker
from vllm_mxext.native.structured.vocabulary import end_token_ids
from vllm_mxext.tokenizer.interface import Tokenizer


def make_grammar_admission(
    config: EngineConfig, tokenizer: Tokenizer, defaults: StructuredOutputsConfig
) -> GrammarAdmission:
    """Makes the admission of grammars, which are tried in a process of its own; the first one starts it.

    Args:
        config: the engine.
        tokenizer: the model's tokenizer.
        defaults: the server's whitespace and property rules.
    """
    model = config.model
    ends = end_token_ids(model.spec, tokenizer)
    return GrammarAdmission(
        tokenizer,
        GrammarChecker(model.tokenizer_path, model.spec.vocab_size, ends),
        end_token_ids=ends,
        disable_any_whitespace=defaults.disable_any_whitespace,
        disable_additional_properties=defaults.disable_additional_properties,
    )
