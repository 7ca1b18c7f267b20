"""Compiling grammars: a trial whose result is a reason, and `LocalCheck`, which makes it in this process."""

from __future__ import annotations

from collections.abc import Callable

from vllm_mxext.errors import GenerationError
from vllm_mxext.native.structured.checker import refusal
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


class LocalCheck:
    """Compiles grammars in this process, for callers who bring their own.

    Args:
        load: makes the vocabulary when it is first needed.
    """

    def __init__(self, load: Callable[[], Vocabulary]) -> None:
        self._load = load
        self._vocabulary: Vocabulary | None = None

    def check(self, grammar: str) -> None:
        """Returns if the grammar compiles.

        Raises:
            InvalidRequestError: it does not; the text is the reason.
        """
        if self._vocabulary is None:
            self._vocabulary = self._load()
        reason = trial_error(grammar, self._vocabulary)
        if reason:
            raise refusal(reason)

    def close(self) -> None:
        """Forgets the vocabulary."""
        self._vocabulary = None
