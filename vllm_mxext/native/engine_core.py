"""`EngineCore`: the engine's step loop body; no async, no locks, no sockets."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol

from vllm_mxext.errors import AdapterError
from vllm_mxext.native.core.adapters import CoreAdapters
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_messages import AdapterDone, AdapterSpec, CoreInfo, StartPhase
from vllm_mxext.native.protocol import (
    AdapterUse,
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

_OWN_CALL = 1
"""Call id where there is one call at a time."""

ProgressReport = Callable[[StartPhase, float], None]
"""Hears how start-up goes: what is being done, and the share of it that is done."""


class EngineCore:
    """A scheduler and a runner, one step at a time.

    Args:
        scheduler: decides what each step computes.
        runner: computes it.
        info: what is known of the loaded engine.
        gate: where requests wait for their grammars; without one, none may have a grammar.
        adapters: those that requests may name; without it, none may name one.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        info: CoreInfo,
        gate: GrammarGate | None = None,
        adapters: CoreAdapters | None = None,
    ) -> None:
        self.info = info
        self._gate = gate
        self._adapters = adapters
        self._is_idle = False
        """The last step computed nothing."""
        self._refused: list[EngineCoreOutput] = []
        self._scheduler = scheduler
        self._runner = runner

    @property
    def has_work(self) -> bool:
        """Whether `step()` has something to do."""
        if self._scheduler.has_work or self._refused:
            return True
        return any(part is not None and part.has_work for part in (self._gate, self._adapters))

    def add_request(self, request: EngineCoreRequest) -> None:
        """Queues a request, or holds it back until its grammar has been built."""
        refusal = self._adapters.check(request) if self._adapters is not None else None
        if refusal is not None:
            self._refused.append(refusal)
        elif request.grammar is None:
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
        if self._adapters is not None:
            self._adapters.advance(is_idle=self._is_idle)
        scheduled = self._scheduler.schedule()
        self._is_idle = not scheduled.total_num_scheduled_tokens
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
        outputs.outputs += self._refused
        self._refused.clear()
        if self._adapters is not None and outputs.stats is not None:
            outputs.stats.adapters = self._adapters.changed_standings()
        return outputs

    def begin_load_adapter(self, call_id: int, spec: AdapterSpec, *, reads_now: bool) -> None:
        """Lets requests name an adapter; the answer is among `take_adapter_answers()` when it has been read.

        Raises:
            AdapterError: the engine serves no adapters.
        """
        self._require_adapters().load(call_id, spec, reads_now=reads_now)

    def begin_drop_adapter(self, call_id: int, adapter_id: int, generation: int) -> None:
        """Forgets an adapter that no open request names and gives its memory back; answered likewise.

        Raises:
            AdapterError: the engine serves no adapters.
        """
        self._require_adapters().drop(call_id, (adapter_id, generation))

    def take_adapter_answers(self) -> list[AdapterDone]:
        """Returns the answers since the last call; calls with id 0 get none."""
        return [] if self._adapters is None else self._adapters.take_done()

    def load_adapter(self, spec: AdapterSpec, *, reads_now: bool = True) -> list[AdapterUse]:
        """Lets requests name an adapter, and waits until it has been read; returns how all adapters stand.

        Raises:
            AdapterError: it cannot be read, or the engine serves no adapters.
        """
        adapters = self._require_adapters()
        adapters.load(_OWN_CALL, spec, reads_now=reads_now)
        return self._await_answer(adapters)

    def drop_adapter(self, adapter_id: int, generation: int) -> list[AdapterUse]:
        """Forgets an adapter that no open request names and gives its memory back; returns how all adapters stand.

        Raises:
            AdapterError: the engine serves no adapters.
        """
        adapters = self._require_adapters()
        adapters.drop(_OWN_CALL, (adapter_id, generation))
        return self._await_answer(adapters)

    def _require_adapters(self) -> CoreAdapters:
        if self._adapters is None:
            raise AdapterError("This engine serves no adapters; start it with --enable-lora.")
        return self._adapters

    def _await_answer(self, adapters: CoreAdapters) -> list[AdapterUse]:
        while not (answers := adapters.take_done()):
            adapters.advance(is_idle=True)
        (answer,) = answers
        if answer.error is not None:
            raise AdapterError(answer.error)
        return answer.adapters

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
