"""Requests and schedulers with short defaults for the tests of `native/core`."""

from __future__ import annotations

from typing import Any

from vllm_mxext.config.engine import SchedulerConfig
from vllm_mxext.native.core.adapter_slots import AdapterSlots
from vllm_mxext.native.core.request import Request
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.protocol import (
    EngineCoreOutput,
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    ModelRunnerOutput,
    SchedulerOutput,
)
from vllm_mxext.sampling_params import SamplingParams

EOS = 99
NEXT_TOKEN = 7


def make_source(
    request_id: str = "a", prompt: int | list[int] = 4, *, max_tokens: int = 8, **fields: Any
) -> EngineCoreRequest:
    """A request whose prompt is a list of ids, or that many ids that no other prompt has."""
    token_ids = [1000 * ord(request_id[-1]) + index for index in range(prompt)] if isinstance(prompt, int) else prompt
    params = fields.pop("params", None) or SamplingParams(max_tokens=max_tokens)
    return EngineCoreRequest(request_id, token_ids, params, seed=1, eos_token_ids=[EOS], **fields)


def make_request(request_id: str = "a", prompt: int | list[int] = 4, *, sequence: int = 0, **fields: Any) -> Request:
    order_key = fields.pop("order_key", (sequence,))
    return Request(make_source(request_id, prompt, **fields), order_key=order_key, max_model_len=64)


class Engine:
    """A scheduler with a runner that samples `next_tokens[request_id]`, or the same token again and again."""

    def __init__(self, *, num_blocks: int = 100, block_size: int = 4, max_model_len: int = 64, **options: Any) -> None:
        enable_prefix_caching = options.pop("enable_prefix_caching", True)
        self.adapters: AdapterSlots | None = options.pop("adapters", None)
        self.now_s = 0.0
        self.next_tokens: dict[str, int] = {}
        self.scheduler = Scheduler(
            SchedulerConfig(**{"max_num_batched_tokens": 64, "max_num_seqs": 8, **options}),
            num_blocks=num_blocks,
            block_size=block_size,
            enable_prefix_caching=enable_prefix_caching,
            max_model_len=max_model_len,
            adapters=self.adapters,
            clock=lambda: self.now_s,
        )
        self._num_missing: dict[str, int] = {}

    def add(self, request_id: str, prompt: int | list[int] = 4, **fields: Any) -> None:
        self.scheduler.add_request(make_source(request_id, prompt, **fields))

    def execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        sampled: dict[str, list[int]] = {}
        for new in scheduled.new_requests:
            self._num_missing[new.request_id] = len(new.token_ids) - new.num_computed_tokens
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            self._num_missing[request_id] -= num_tokens
            if self._num_missing[request_id] == 0:
                self._num_missing[request_id] = 1
                sampled[request_id] = [self.next_tokens.get(request_id, NEXT_TOKEN)]
        return ModelRunnerOutput(sampled)

    def step(self) -> tuple[SchedulerOutput, EngineCoreOutputs]:
        scheduled = self.scheduler.schedule()
        return scheduled, self.scheduler.update_from_output(scheduled, self.execute(scheduled))

    def run(self, max_steps: int = 1000) -> dict[str, tuple[FinishReason, list[int]]]:
        """Steps until idle; returns finish reason and tokens of every request that ended."""
        tokens: dict[str, list[int]] = {}
        ended: dict[str, tuple[FinishReason, list[int]]] = {}
        for _ in range(max_steps):
            if not self.scheduler.has_work:
                break
            for output in self.step()[1].outputs:
                tokens.setdefault(output.request_id, []).extend(output.new_token_ids)
                if output.finish_reason is not None:
                    ended[output.request_id] = (output.finish_reason, tokens[output.request_id])
        assert not self.scheduler.has_work
        self.scheduler.check_integrity()
        return ended


def only(outputs: EngineCoreOutputs) -> EngineCoreOutput:
    (output,) = outputs.outputs
    return output


def overload(engine: Engine) -> SchedulerOutput:
    """Steps until a request is preempted; returns that step."""
    for _ in range(50):
        scheduled, outputs = engine.step()
        assert outputs.stats is not None
        if outputs.stats.num_preempted:
            return scheduled
    raise AssertionError("Nothing was preempted.")


def growing_engine(num_requests: int = 3, **options: Any) -> Engine:
    """Requests that are all let in at once and outgrow the pool of 15 blocks later."""
    engine = Engine(num_blocks=16, block_size=1, max_model_len=15, **options)
    for index in range(num_requests):
        engine.add(f"r{index}", 1, max_tokens=10, priority=-index)
    return engine
