"""`GrammarBuilds`: the core's grammars, built in a thread of their own while their requests wait."""

from __future__ import annotations

import queue
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from vllm_mxext.errors import GenerationError
from vllm_mxext.native.structured.compilation import compile_grammar
from vllm_mxext.native.structured.matcher import GrammarMatcher
from vllm_mxext.native.structured.vocabulary import Vocabulary

_MAX_CACHED = 64
_STACK_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class Build:
    """The end of a build.

    Attributes:
        request_id: whose.
        error: why it failed; None if there is a matcher now.
    """

    request_id: str
    error: str | None = None


class GrammarBuilds:
    """Grammars of open requests, from the order to build them to their end.

    All methods belong to the engine's thread. The vocabulary is made when the first grammar comes.

    Args:
        load: makes the vocabulary.
    """

    def __init__(self, load: Callable[[], Vocabulary]) -> None:
        self._load = load
        self._orders: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        self._results: queue.SimpleQueue[tuple[str, GrammarMatcher | str]] = queue.SimpleQueue()
        self._building: set[str] = set()
        self._matchers: dict[str, GrammarMatcher] = {}
        self._thread: threading.Thread | None = None

    def start(self, request_id: str, grammar: str) -> None:
        """Begins to build the grammar of a request."""
        if self._thread is None:
            self._thread = _Builder(self._load, self._orders, self._results).launched()
        self._building.add(request_id)
        self._orders.put((request_id, grammar))

    def finished(self, timeout_s: float) -> list[Build]:
        """Returns the builds that have ended since the last call, after waiting for the first one for so long."""
        ended: list[Build] = []
        while self._building:
            try:
                request_id, result = self._results.get(timeout=timeout_s) if timeout_s else self._results.get_nowait()
            except queue.Empty:
                break
            timeout_s = 0.0
            if request_id not in self._building:
                continue  # dropped meanwhile
            self._building.remove(request_id)
            if isinstance(result, str):
                ended.append(Build(request_id, result))
            else:
                self._matchers[request_id] = result
                ended.append(Build(request_id))
        return ended

    def matcher(self, request_id: str, stop_token_ids: Sequence[int] = ()) -> GrammarMatcher | None:
        """Returns a new matcher at the beginning of a request's grammar, or None if it has none."""
        matcher = self._matchers.get(request_id)
        return None if matcher is None else matcher.copy(stop_token_ids)

    def drop(self, request_id: str) -> None:
        """Forgets a request; unknown ids are ignored."""
        self._building.discard(request_id)
        self._matchers.pop(request_id, None)


class _Builder:
    """The thread's side: builds in the order of arrival, equal grammars once."""

    def __init__(
        self,
        load: Callable[[], Vocabulary],
        orders: queue.SimpleQueue[tuple[str, str]],
        results: queue.SimpleQueue[tuple[str, GrammarMatcher | str]],
    ) -> None:
        self._load = load
        self._orders = orders
        self._results = results
        self._vocabulary: Vocabulary | None = None
        self._built: OrderedDict[str, GrammarMatcher] = OrderedDict()

    def launched(self) -> threading.Thread:
        """Starts the thread, with a stack for deep grammars."""
        before = threading.stack_size(_STACK_BYTES)
        try:
            thread = threading.Thread(target=self._run, name="grammars", daemon=True)
            thread.start()
        finally:
            threading.stack_size(before)
        return thread

    def _run(self) -> None:
        while True:
            request_id, grammar = self._orders.get()
            self._results.put((request_id, self._build(grammar)))

    def _build(self, grammar: str) -> GrammarMatcher | str:
        matcher = self._built.get(grammar)
        if matcher is None:
            try:
                if self._vocabulary is None:
                    self._vocabulary = self._load()
                matcher = compile_grammar(grammar, self._vocabulary)
                matcher.mask()  # what the first mask builds is shared by all copies
            except GenerationError as error:
                return f"The grammar cannot be built: {error}."
            except Exception as error:  # whatever it is, it is this request's alone
                return f"The grammar cannot be built: {type(error).__name__}: {error}."
        self._built[grammar] = matcher
        self._built.move_to_end(grammar)
        if len(self._built) > _MAX_CACHED:
            self._built.popitem(last=False)
        return matcher
