"""`GrammarRows`: the runner's matchers: masks filled while the forward pass runs, tokens taken, forced ones found."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from vllm_mxext.errors import GenerationError
from vllm_mxext.native.protocol import NewRequestData, SchedulerOutput
from vllm_mxext.native.structured.builds import GrammarBuilds
from vllm_mxext.native.structured.matcher import GrammarMatcher, Words
from vllm_mxext.sampling_params import SamplingParams

_MAX_THREADS = 4


@dataclass(slots=True)
class _Row:
    matcher: GrammarMatcher
    params: SamplingParams
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Advance:
    """What became of a request with its sampled token.

    Attributes:
        forced: tokens that follow because nothing else can.
        is_complete: nothing can follow any more.
    """

    forced: Sequence[int] = ()
    is_complete: bool = False


class GrammarRows:
    """Matchers of the running requests that have a grammar.

    Args:
        builds: where their grammars come from.
        num_threads: processor cores in use.
    """

    def __init__(self, builds: GrammarBuilds, num_threads: int = 1) -> None:
        self._builds = builds
        self._num_threads = max(1, min(num_threads, _MAX_THREADS))
        self._executor: ThreadPoolExecutor | None = None
        self._rows: dict[str, _Row] = {}
        self._pending: dict[str, Future[Words]] = {}

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._rows

    def update(self, scheduled: SchedulerOutput) -> None:
        """Follows the scheduler: drops requests, and takes those that begin or resume."""
        if self._rows:
            for request_id in scheduled.finished_request_ids:
                self._rows.pop(request_id, None)
        for new in scheduled.new_requests:
            self._add(new)

    def _add(self, new: NewRequestData) -> None:
        """Brings the matcher of a request to the end of its output."""
        matcher = self._builds.matcher(new.request_id, new.params.stop_token_ids)
        if matcher is None:
            return
        row = self._rows[new.request_id] = _Row(matcher, new.params)
        try:
            matcher.accept(new.token_ids[new.num_prompt_tokens :])
        except GenerationError as error:
            row.error = _failure(error)

    def matcher(self, request_id: str) -> GrammarMatcher | None:
        """Returns the matcher of a running request, if it has one."""
        row = self._rows.get(request_id)
        return None if row is None else row.matcher

    def begin_masks(self, request_ids: Iterable[str], drafts: Mapping[str, Sequence[int]]) -> None:
        """Starts to fill the masks of the requests that are about to sample, one for each position.

        Args:
            request_ids: who samples.
            drafts: request id -> draft tokens, behind each of which is a position more.
        """
        if not self._rows:
            return
        for request_id in request_ids:
            row = self._rows.get(request_id)
            if row is not None and row.error is None:
                if self._executor is None:
                    self._executor = ThreadPoolExecutor(self._num_threads, thread_name_prefix="masks")
                self._pending[request_id] = self._executor.submit(row.matcher.masks_for, drafts.get(request_id, ()))

    def take_masks(self) -> dict[str, Words]:
        """Returns the masks begun, by request: `[num_positions, num_words]`, fewer if a draft does not fit.

        A request without any has failed, and `failure()` says why.
        """
        masks: dict[str, Words] = {}
        for request_id, future in self._pending.items():
            error = future.exception()
            if error is None:
                masks[request_id] = future.result()
            else:
                self._rows[request_id].error = _failure(error)
        self._pending.clear()
        return masks

    def failure(self, request_id: str) -> str | None:
        """Why a request cannot go on; None if it can."""
        row = self._rows.get(request_id)
        return None if row is None else row.error

    def may_end(self, request_id: str, token_id: int) -> bool:
        """Whether a request may end with this token, whatever its grammar says."""
        row = self._rows[request_id]
        return token_id in row.params.stop_token_ids or row.matcher.is_end(token_id)

    def advance(self, request_id: str, token_id: int, room: int, num_output_tokens: int) -> Advance:
        """Takes the token sampled for a request.

        Args:
            request_id: whose.
            token_id: sampled.
            room: further tokens that the context allows.
            num_output_tokens: with the sampled one.
        """
        row = self._rows[request_id]
        if row.params.max_tokens is not None:
            room = min(room, row.params.max_tokens - num_output_tokens)
        matcher, stops = row.matcher, row.params.stop_token_ids
        try:
            matcher.accept([token_id])
            if token_id in stops:
                return Advance()
            forced = [] if row.params.reports_logprobs else matcher.forced_tokens()[: max(0, room)]
            end = next((index for index, one in enumerate(forced, 1) if one in stops), None)
            if end is not None:
                return Advance(forced[:end])
            matcher.accept(forced)
        except GenerationError as error:
            row.error = _failure(error)
            return Advance()
        return Advance(forced, matcher.is_complete)


def _failure(error: BaseException) -> str:
    return f"The structured output cannot go on: {error}."
