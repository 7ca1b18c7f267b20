"""`EngineCore`: the engine's step loop body; no async, no locks, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_messages import CoreInfo, StartPhase
from vllm_mxext.native.protocol import (
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    ModelRunnerOutput,
    SchedulerOutput,
)


class Runner(Protocol):
    """Computes what the scheduler has chosen."""

    def execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        """Runs one forward pass; a negative sampled token id says that this request cannot go on."""
        ...


ProgressReport = Callable[[StartPhase, float], None]
"""Hears how start-up goes: what is being done, and the share of it that is done."""


class EngineCore:
    """A scheduler and a runner, one step at a time.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        info: what is known of the loaded engine.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, info: CoreInfo) -> None:
        self.info = info
        self._scheduler = scheduler
        self._runner = runner

    @property
    def has_work(self) -> bool:
        """Whether `step()` has something to do."""
        return self._scheduler.has_work

    def add_request(self, request: EngineCoreRequest) -> None:
        """Queues a request."""
        self._scheduler.add_request(request)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests with `FinishReason.ABORT`; unknown ids are ignored."""
        self._scheduler.abort(request_ids)

    def step(self) -> EngineCoreOutputs:
        """Schedules, computes and accounts for one step.

        A request whose logits are unusable ends with `FinishReason.ERROR` and the others go on. If the forward pass
        raises, so does this; the step's requests have ended then, which the next step's outputs say.
        """
        scheduled = self._scheduler.schedule()
        result = self._execute(scheduled)
        failed = self._withdraw_failed(result)
        outputs = self._scheduler.update_from_output(scheduled, result)
        for output in outputs.outputs:
            if output.request_id in failed:
                output.finish_reason = FinishReason.ERROR
                output.error = (
                    "There are no usable scores for the next token: the model computed NaN or infinite ones, or the "
                    "request forbids every token."
                )
        return outputs

    def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks, so that later requests find nothing computed before; always possible, so True."""
        self._scheduler.reset_prefix_cache()
        return True

    def _execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        if not scheduled.total_num_scheduled_tokens:
            return ModelRunnerOutput({})
        try:
            return self._runner.execute(scheduled)
        except BaseException as error:
            self._scheduler.fail_step(scheduled, str(error))
            raise

    def _withdraw_failed(self, result: ModelRunnerOutput) -> frozenset[str]:
        """Takes requests without a usable token out of the scheduler, with whatever they left in the prefix cache."""
        failed = frozenset(key for key, token_ids in result.sampled_token_ids.items() if min(token_ids) < 0)
        if failed:
            self._scheduler.abort(failed)
            self._scheduler.reset_prefix_cache()
        return failed
