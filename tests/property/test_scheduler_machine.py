"""Random histories of the whole scheduler against a runner that checks every key it reads."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from tests.property.simulated_runner import (
    EOS_TOKEN_ID,
    STOP_TOKEN_ID,
    VOCAB_SIZE,
    SimulatedRunner,
    undisturbed_output,
)
from vllm_mxext.config.engine import SchedulerConfig
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.protocol import (
    EngineCoreOutputs,
    EngineCoreRequest,
    FinishReason,
    ModelRunnerOutput,
    SchedulerOutput,
)
from vllm_mxext.sampling_params import SamplingParams

MAX_MODEL_LEN = 40

token_ids = st.integers(0, VOCAB_SIZE - 1)


@st.composite
def prompts(draw: st.DrawFn) -> list[int]:
    """Prompts that often share a prefix: a piece of one of two long sequences, then a few tokens of their own."""
    family = draw(st.integers(0, 1))
    shared = [
        (family * 5 + index) % VOCAB_SIZE for index in range(draw(st.one_of(st.integers(0, 6), st.integers(0, 30))))
    ]
    own = draw(st.lists(token_ids, min_size=0 if shared else 1, max_size=4))
    return shared + own


@st.composite
def sampling_params(draw: st.DrawFn) -> SamplingParams:
    max_tokens = draw(st.one_of(st.integers(1, 6), st.integers(20, 36)))
    return SamplingParams(
        max_tokens=max_tokens,
        min_tokens=draw(st.integers(0, min(max_tokens, 6))),
        ignore_eos=draw(st.sampled_from([True, True, False])),
        stop_token_ids=draw(st.sampled_from([(), (), (STOP_TOKEN_ID,), (EOS_TOKEN_ID, STOP_TOKEN_ID)])),
    )


@st.composite
def scheduler_configs(draw: st.DrawFn) -> SchedulerConfig:
    is_chunked = draw(st.booleans())
    return SchedulerConfig(
        max_num_batched_tokens=draw(
            st.one_of(st.integers(1, 6), st.integers(4, 40)) if is_chunked else st.integers(MAX_MODEL_LEN, 60)
        ),
        max_num_seqs=draw(st.sampled_from([1, 2, 4, 8, 8, 16])),
        enable_chunked_prefill=is_chunked,
        long_prefill_token_threshold=draw(st.sampled_from([0, 0, 0, 1, 3, 7])),
        policy=draw(st.sampled_from(["fcfs", "priority"])),
        num_draft_tokens=draw(st.sampled_from([0, 1, 3, 5])),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Adds, steps, aborts, fails, resets and crashes a scheduler with a pool small enough to force preemption."""

    @initialize(
        config=scheduler_configs(),
        block_size=st.integers(1, 4),
        num_spare_blocks=st.integers(0, 10),
        enable_prefix_caching=st.booleans(),
    )
    def start(
        self, config: SchedulerConfig, block_size: int, num_spare_blocks: int, enable_prefix_caching: bool
    ) -> None:
        self.config = config
        self.block_size = block_size
        self.num_blocks = 1 + -(-MAX_MODEL_LEN // block_size) + num_spare_blocks
        self.enable_prefix_caching = enable_prefix_caching
        self.requests: dict[str, EngineCoreRequest] = {}
        self.outputs: dict[str, list[int]] = {}
        self.ended: dict[str, FinishReason] = {}
        self.withdrawn: dict[str, FinishReason] = {}
        self.num_resets = 0
        self.boot()

    def boot(self) -> None:
        self.now_s = 0.0
        self.is_in_step = False
        self.scheduler = Scheduler(
            self.config,
            num_blocks=self.num_blocks,
            block_size=self.block_size,
            enable_prefix_caching=self.enable_prefix_caching,
            max_model_len=MAX_MODEL_LEN,
            clock=self.clock,
        )
        self.runner = SimulatedRunner(self.num_blocks, self.block_size, self.root_of)
        self.preempted: set[str] = set()
        self.num_outputs_at_return: dict[str, int] = {}
        self.reported: set[str] = set()

    def clock(self) -> float:
        self.now_s += 1
        return self.now_s

    def root_of(self, request_id: str) -> bytes:
        request = self.requests[request_id]
        sharers = None if self.enable_prefix_caching else (request.group_id or request_id)
        keys = (request.adapter_id, request.adapter_generation, request.cache_salt, sharers, self.num_resets)
        return repr(keys).encode()

    # --- what can happen ---

    @rule(
        prompt=prompts(),
        params=sampling_params(),
        num_samples=st.sampled_from([1, 1, 1, 3, 6]),
        adapter=st.sampled_from([(0, 0), (0, 0), (0, 0), (1, 0), (1, 1)]),
        cache_salt=st.sampled_from([None, None, None, "salt"]),
        priority=st.integers(-1, 1),
        seed=st.integers(0, 3),
    )
    def add(
        self,
        prompt: list[int],
        params: SamplingParams,
        num_samples: int,
        adapter: tuple[int, int],
        cache_salt: str | None,
        priority: int,
        seed: int,
    ) -> None:
        group_id = f"group-{len(self.requests)}" if num_samples > 1 else None
        for index in range(num_samples):
            request = EngineCoreRequest(
                request_id=f"r{len(self.requests)}",
                prompt_token_ids=prompt,
                params=params,
                seed=seed + index,
                eos_token_ids=[EOS_TOKEN_ID],
                priority=priority,
                arrival_s=float(len(self.requests)),
                adapter_id=adapter[0],
                adapter_generation=adapter[1],
                cache_salt=cache_salt,
                group_id=group_id,
            )
            self.requests[request.request_id] = request
            self.outputs[request.request_id] = []
            self.scheduler.add_request(request)

    @rule(
        first_tokens=st.lists(token_ids, min_size=4, max_size=10),
        max_tokens=st.integers(25, 35),
        num_steps=st.integers(0, 20),
        urgent_tokens=st.lists(token_ids, max_size=2),
    )
    def flood(self, first_tokens: list[int], max_tokens: int, num_steps: int, urgent_tokens: list[int]) -> None:
        """Short prompts with long outputs are let in and outgrow the pool; then long, urgent prompts come."""
        params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
        for seed, token_id in enumerate(first_tokens):
            self.add([token_id], params, 1, (0, 0), None, 0, seed)
        self.run_steps(num_steps)
        for token_id in urgent_tokens:
            self.add([token_id] * (MAX_MODEL_LEN - 8), SamplingParams(max_tokens=5), 1, (0, 0), None, -2, 0)

    @rule(num_steps=st.integers(1, 12))
    def run_steps(self, num_steps: int) -> None:
        for _ in range(num_steps):
            self.step()

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.open_request_ids)
    def abort_between_steps(self, data: st.DataObject) -> None:
        self.abort(data)

    @rule(data=st.data())
    @precondition(lambda self: self.scheduler.open_request_ids)
    def abort_during_step(self, data: st.DataObject) -> None:
        scheduled = self.schedule()
        self.abort(data)
        self.take(self.scheduler.update_from_output(scheduled, self.runner.execute(scheduled)))

    @rule()
    @precondition(lambda self: self.scheduler.open_request_ids)
    def fail_step(self) -> None:
        scheduled = self.schedule()
        self.runner.fail(scheduled)
        for request_id in scheduled.num_scheduled_tokens:
            self.withdrawn.setdefault(request_id, FinishReason.ERROR)
        self.num_resets += 1
        self.scheduler.fail_step(scheduled, "The forward pass failed.")
        self.is_in_step = False

    @rule()
    def reset_prefix_cache(self) -> None:
        self.num_resets += 1
        self.scheduler.reset_prefix_cache()

    @rule()
    @precondition(lambda self: self.scheduler.open_request_ids)
    def crash_and_resubmit(self) -> None:
        """A new engine process gets every open request again, with the tokens delivered so far."""
        self.boot()
        for request_id, request in self.requests.items():
            if request_id in self.withdrawn and request_id not in self.ended:
                self.ended[request_id] = self.withdrawn[request_id]
            elif request_id not in self.ended:
                resubmitted = msgspec.structs.replace(request, output_token_ids=self.outputs[request_id].copy())
                self.scheduler.add_request(resubmitted)

    # --- what must hold ---

    @invariant()
    def blocks_and_requests_agree(self) -> None:
        self.scheduler.check_integrity()
        assert self.scheduler.num_running <= self.config.max_num_seqs
        open_ids = {request_id for request_id in self.requests if request_id not in self.ended | self.withdrawn}
        assert set(self.scheduler.open_request_ids) == open_ids

    def teardown(self) -> None:
        if not hasattr(self, "scheduler") or self.is_in_step:
            return  # nothing happened, or a check failed in the middle of a step
        open_requests = [self.requests[request_id] for request_id in self.scheduler.open_request_ids]
        limit = 2 + sum(len(request.prompt_token_ids) + request.params.max_tokens for request in open_requests)
        if self.config.policy == "priority":
            limit *= 1 + len(open_requests)  # whoever is best may change while others finish
        for _ in range(limit):
            if not self.scheduler.has_work:
                break
            self.step()
        assert not self.scheduler.has_work, f"Still busy after {limit} steps."
        self.scheduler.check_integrity()
        assert self.scheduler.num_free_blocks == self.scheduler.num_usable_blocks
        assert self.ended.keys() == self.requests.keys()
        self.check_outputs()

    def check_outputs(self) -> None:
        for request_id, request in self.requests.items():
            expected, finish_reason, _ = undisturbed_output(request, MAX_MODEL_LEN)
            output = self.outputs[request_id]
            if request_id in self.withdrawn:
                assert self.ended[request_id] == self.withdrawn[request_id]
                assert output == expected[: len(output)]
            else:
                assert (output, self.ended[request_id]) == (expected, finish_reason)

    # --- one step ---

    def step(self) -> None:
        scheduled = self.schedule()
        is_empty = scheduled.total_num_scheduled_tokens == 0
        result = ModelRunnerOutput({}) if is_empty else self.runner.execute(scheduled)
        self.take(self.scheduler.update_from_output(scheduled, result))

    def schedule(self) -> SchedulerOutput:
        had_open = bool(self.scheduler.open_request_ids)
        self.is_in_step = True
        scheduled = self.scheduler.schedule()
        assert scheduled.total_num_scheduled_tokens <= self.config.max_num_batched_tokens
        assert not had_open or scheduled.total_num_scheduled_tokens > 0, "A step with open requests does nothing."
        if scheduled.total_num_scheduled_tokens == 0:
            assert scheduled == SchedulerOutput()
        self.check_drafts(scheduled)
        self.check_chunks(scheduled)
        self.check_decodes_go_on(scheduled)
        assert not (scheduled.new_requests and self.just_preempted(scheduled)), "A step let in and preempted."
        self.check_gain_between_preemptions(scheduled)
        return scheduled

    def check_drafts(self, scheduled: SchedulerOutput) -> None:
        drafts = scheduled.num_draft_tokens
        assert all(count <= self.config.num_draft_tokens for count in drafts.values())
        if drafts:
            assert not self.just_preempted(scheduled), "A step preempted somebody and has drafts."
            assert self.scheduler.num_running + sum(drafts.values()) <= self.config.max_num_samples
        for request_id, count in drafts.items():
            request = self.requests[request_id]
            num_outputs = len(self.outputs[request_id])
            assert num_outputs + count < request.params.max_tokens
            assert len(request.prompt_token_ids) + num_outputs + count < MAX_MODEL_LEN

    def check_chunks(self, scheduled: SchedulerOutput) -> None:
        threshold = self.config.long_prefill_token_threshold
        starts = {new.request_id: new.num_computed_tokens for new in scheduled.new_requests}
        for new in scheduled.new_requests:
            assert new.num_computed_tokens < len(new.token_ids), "Nothing is left to compute."
            assert new.num_computed_tokens % self.block_size == 0
        for request_id, num_tokens in scheduled.num_scheduled_tokens.items():
            num_known = len(self.requests[request_id].prompt_token_ids) + len(self.outputs[request_id])
            start = starts[request_id] if request_id in starts else self.runner.rows[request_id].num_computed_tokens
            if not self.config.enable_chunked_prefill:
                assert start + num_tokens == num_known, "A prompt was cut although chunked prefill is off."
            elif threshold:
                assert num_tokens <= threshold

    def check_decodes_go_on(self, scheduled: SchedulerOutput) -> None:
        for request_id, row in self.runner.rows.items():
            is_decode = len(row.token_ids) - row.num_computed_tokens == 1
            is_running = request_id in self.scheduler.open_request_ids and request_id not in self.preempted
            is_running = is_running and request_id not in scheduled.finished_request_ids
            if is_decode and is_running and request_id not in scheduled.num_scheduled_tokens:
                assert self.scheduler.num_free_blocks == 0, f"{request_id} was passed over."

    def check_gain_between_preemptions(self, scheduled: SchedulerOutput) -> None:
        """Under FCFS a request that came back gains a token before it is preempted again."""
        for request_id in self.just_preempted(scheduled):
            num_outputs = self.num_outputs_at_return.pop(request_id, None)
            if num_outputs is not None and self.config.policy == "fcfs":
                assert len(self.outputs[request_id]) > num_outputs, f"{request_id} was thrown out without a token."
            self.preempted.add(request_id)
        for new in scheduled.new_requests:
            if new.request_id in self.preempted:
                self.preempted.remove(new.request_id)
                self.num_outputs_at_return[new.request_id] = len(self.outputs[new.request_id])

    def just_preempted(self, scheduled: SchedulerOutput) -> set[str]:
        preempted = set(scheduled.finished_request_ids) & set(self.scheduler.open_request_ids)
        return preempted - self.preempted  # ids of a failed step are sent twice

    def abort(self, data: st.DataObject) -> None:
        open_ids = self.scheduler.open_request_ids
        if not open_ids:
            return
        request_ids = data.draw(st.lists(st.sampled_from(open_ids), min_size=1, max_size=3))
        for request_id in request_ids:
            self.withdrawn.setdefault(request_id, FinishReason.ABORT)
        self.scheduler.abort([*request_ids, "unknown"])

    def take(self, outputs: EngineCoreOutputs) -> None:
        for output in outputs.outputs:
            assert output.request_id not in self.ended, "A request went on after its end."
            self.outputs[output.request_id] += output.new_token_ids
            assert (output.scheduled_after_s is None) or output.request_id not in self.reported
            self.reported.add(output.request_id)
            if output.finish_reason is not None:
                self.ended[output.request_id] = output.finish_reason
                assert (output.error is not None) == (output.finish_reason is FinishReason.ERROR)
            else:
                assert output.new_token_ids, "An output says nothing."
        self.is_in_step = False
        stats = outputs.stats
        assert stats is not None
        assert stats.num_running + stats.num_waiting == len(self.scheduler.open_request_ids)
        assert stats.prefix_cache_hits <= stats.prefix_cache_queries


_QUIET = settings(deadline=None, suppress_health_check=list(HealthCheck))


@pytest.mark.promise("CORE-1", "CORE-2", "CORE-5", "CORE-9")
class TestScheduler(SchedulerMachine.TestCase):
    settings = settings(_QUIET, max_examples=100, stateful_step_count=30)


@pytest.mark.slow
class TestSchedulerForLong(SchedulerMachine.TestCase):
    settings = settings(_QUIET, max_examples=1_000, stateful_step_count=60)
