"""Compiling grammars, and a trial whose result is a reason."""

from __future__ import annotations

from vllm_mxext.errors import GenerationError
from vllm_mxext.native.structured.matcher import GrammarMatcher
from vllm_mxext.native.structured.vocabulary import Vocabulary


def compile_grammar(grammar: str, vocabulary: Vocabulary) -> GrammarMatcher:
    """Builds the automaton of a grammar.

    Raises:
        GenerationError: it cannot be built; the text is the reason.
    """
    try:
        return GrammarMatcher.compile(grammar, vocabulary)
    except GenerationError:
        raise
    except BaseException as error:  # a panic of the library is no Exception
        if isinstance(error, (KeyboardInterrupt, SystemExit)):
            raise
        raise GenerationError(f"the grammar library failed on it ({type(error).__name__})") from error


def trial_error(grammar: str, vocabulary: Vocabulary) -> str:
    """Compiles a grammar and takes its first steps; returns why that fails, or an empty text."""
    try:
        matcher = compile_grammar(grammar, vocabulary)
        if not matcher.mask().any() and not matcher.is_complete:
            return "no output fits it"
        forced = matcher.forced_tokens()
        matcher.accept(forced)
        matcher.mask()
    except GenerationError as error:
        return str(error)
    return ""
