"""`GrammarGate`: where requests with a grammar wait, outside of the scheduler's queue, until it has been built."""

from __future__ import annotations

from collections.abc import Iterable

from vllm_mxext.native.protocol import EngineCoreOutput, EngineCoreRequest, FinishReason
from vllm_mxext.native.structured.builds import GrammarBuilds


class GrammarGate:
    """Holds requests back while their grammars are built, so that they hold nobody up.

    Args:
        builds: builds the grammars.
    """

    def __init__(self, builds: GrammarBuilds) -> None:
        self._builds = builds
        self._waiting: dict[str, EngineCoreRequest] = {}
        self._outputs: list[EngineCoreOutput] = []

    @property
    def num_waiting(self) -> int:
        """Requests held back."""
        return len(self._waiting)

    @property
    def has_work(self) -> bool:
        """Whether a request is held back or an end has not been told."""
        return bool(self._waiting or self._outputs)

    def add(self, request: EngineCoreRequest, grammar: str) -> None:
        """Takes a request and begins to build its grammar."""
        self._waiting[request.request_id] = request
        self._builds.start(request.request_id, grammar)

    def take_ready(self, timeout_s: float = 0.0) -> list[EngineCoreRequest]:
        """Returns the requests whose grammars are there, after waiting for the first one for so long."""
        if not self._waiting:
            return []
        ready = []
        for build in self._builds.finished(timeout_s):
            request = self._waiting.pop(build.request_id)
            if build.error is None:
                ready.append(request)
            else:
                self._end(build.request_id, FinishReason.ERROR, build.error)
        return ready

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests that are held back; others are ignored."""
        for request_id in request_ids:
            if self._waiting.pop(request_id, None) is not None:
                self._builds.drop(request_id)
                self._end(request_id, FinishReason.ABORT)

    def take_outputs(self) -> list[EngineCoreOutput]:
        """Returns the ends of requests that never came to run."""
        outputs, self._outputs = self._outputs, []
        return outputs

    def forget(self, outputs: Iterable[EngineCoreOutput]) -> None:
        """Drops the grammars of requests that these outputs end."""
        for output in outputs:
            if output.finish_reason is not None:
                self._builds.drop(output.request_id)

    def _end(self, request_id: str, reason: FinishReason, error: str | None = None) -> None:
        self._outputs.append(EngineCoreOutput(request_id, finish_reason=reason, error=error))
