"""`EngineCore`: the engine's step loop body; no async, no locks, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_messages import CoreInfo, StartPhase
from vllm_mxext.native.protocol import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    ModelRunnerOutput,
    SchedulerOutput,
)
from vllm_mxext.native.structured.gate import GrammarGate

_GRAMMAR_WAIT_S = 0.02
"""How long a step waits for a grammar when there is nothing else to do; aborts wait no longer."""


class Runner(Protocol):
    """Computes what the scheduler has chosen."""

    def execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        """Runs one forward pass; a negative sampled token id says that this request cannot go on."""
        ...


_NO_SCORES = (
    "There are no usable scores for the next token: the model computed NaN or infinite ones, or the request "
    "forbids every token."
)

ProgressReport = Callable[[StartPhase, float], None]
"""Hears how start-up goes: what is being done, and the share of it that is done."""


class EngineCore:
    """A scheduler and a runner, one step at a time.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        info: what is known of the loaded engine.
        gate: where requests wait for their grammars; without one, none may have a grammar.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, info: CoreInfo, gate: GrammarGate | None = None) -> None:
        self.info = info
        self._gate = gate
        self._scheduler = scheduler
        self._runner = runner

    @property
    def has_work(self) -> bool:
        """Whether `step()` has something to do."""
        return self._scheduler.has_work or (self._gate is not None and self._gate.has_work)

    def add_request(self, request: EngineCoreRequest) -> None:
        """Queues a request, or holds it back until its grammar has been built."""
        if request.grammar is None:
            self._scheduler.add_request(request)
        else:
            assert self._gate is not None, "This engine has nothing to build grammars with."
            self._gate.add(request, request.grammar)

    def abort(self, request_ids: Iterable[str]) -> None:
        """Ends requests with `FinishReason.ABORT`; unknown ids are ignored."""
        request_ids = list(request_ids)
        self._scheduler.abort(request_ids)
        if self._gate is not None:
            self._gate.abort(request_ids)

    def step(self) -> EngineCoreOutputs:
        """Schedules, computes and accounts for one step.

        A request whose logits are unusable ends with `FinishReason.ERROR` and the others go on. If the forward pass
        raises, so does this; the step's requests have ended then, which the next step's outputs say.
        """
        if self._gate is not None:
            for request in self._gate.take_ready(0.0 if self._scheduler.has_work else _GRAMMAR_WAIT_S):
                self._scheduler.add_request(request)
        scheduled = self._scheduler.schedule()
        result = self._execute(scheduled)
        failed = self._withdraw_failed(result)
        self._scheduler.abort(result.complete_ids)
        outputs = self._scheduler.update_from_output(scheduled, result)
        for output in outputs.outputs:
            if output.request_id in failed:
                output.finish_reason = FinishReason.ERROR
                output.error = result.errors.get(output.request_id, _NO_SCORES)
            elif output.request_id in result.complete_ids:
                _complete(output, result)
        self._add_gate(outputs)
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
        sampled = result.sampled_token_ids.items()
        failed = frozenset(key for key, token_ids in sampled if min(token_ids, default=0) < 0)
        if failed:
            self._scheduler.abort(failed)
            if failed - result.errors.keys():
                self._scheduler.reset_prefix_cache()
        return failed

    def _add_gate(self, outputs: EngineCoreOutputs) -> None:
        """Adds what the gate has to tell, and tells it which requests have ended."""
        if self._gate is None:
            return
        outputs.outputs += self._gate.take_outputs()
        self._gate.forget(outputs.outputs)
        if outputs.stats is not None:
            outputs.stats.num_waiting += self._gate.num_waiting


def _complete(output: EngineCoreOutput, result: ModelRunnerOutput) -> None:
    """Makes the last output of a request whose grammar lets nothing follow."""
    output.new_token_ids = result.sampled_token_ids.get(output.request_id, [])
    output.logprobs = result.logprobs.get(output.request_id)
    output.finish_reason = FinishReason.STOP
    output.is_whole = True
