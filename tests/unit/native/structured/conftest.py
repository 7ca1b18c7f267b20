"""A vocabulary of bytes, and a way to ask whether a text is a whole output."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.errors import GenerationError
from vllm_mxext.native.structured.compilation import compile_grammar
from vllm_mxext.native.structured.grammar import grammar_text
from vllm_mxext.native.structured.matcher import GrammarMatcher
from vllm_mxext.native.structured.vocabulary import Vocabulary, make_vocabulary

Fits = Callable[..., bool]


@pytest.fixture(scope="session")
def vocabulary() -> Vocabulary:
    return make_vocabulary(FakeTokenizer(), FakeTokenizer.SIZE, [FakeTokenizer.EOS])


@pytest.fixture(scope="session")
def matcher(vocabulary: Vocabulary) -> Callable[..., GrammarMatcher]:
    """`matcher(regex=...)`: at the beginning of that constraint."""

    def make(**constraint: Any) -> GrammarMatcher:
        params = StructuredOutputsParams(**constraint)
        return compile_grammar(grammar_text(params, vocabulary.special_tokens, [FakeTokenizer.EOS]), vocabulary)

    return make


@pytest.fixture(scope="session")
def fits(matcher: Callable[..., GrammarMatcher]) -> Fits:
    """`fits(text, regex=...)`: whether `text` is a whole output."""

    def check(text: str, **constraint: Any) -> bool:
        one = matcher(**constraint)
        try:
            one.accept(FakeTokenizer().encode(text, add_special_tokens=False))
        except GenerationError:
            return False
        return one.is_accepting

    return check
