"""Drives the real scheduler and model runner over chosen requests and records every sampled row's logits."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch

from vllm_mxext import envs
from vllm_mxext.config.engine import (
    CacheConfig,
    DeviceConfig,
    DType,
    EngineConfig,
    KVCacheDType,
    ModelConfig,
    PreparedConfig,
    Quantization,
    SchedulerConfig,
    SpeculationConfig,
)
from vllm_mxext.config.model_spec import read_model_spec
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.kernels.library import TORCH_ISA, runnable_isas
from vllm_mxext.native.protocol import EngineCoreRequest, TokenLogprobs
from vllm_mxext.native.sampling.metadata import SamplerOutput, SamplingMetadata
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.native.worker.model_runner import ModelRunner
from vllm_mxext.sampling_params import SamplingParams

MAX_MODEL_LEN = 128
BLOCK_SIZE = 16
_MAX_STEPS = 2_000


def kernel_sets() -> list[str]:
    """Plain PyTorch and the fastest compiled kernels of this machine; with `TEST_ALL_ISAS=1` all it can run."""
    isas = runnable_isas()
    return [TORCH_ISA, *(isas if os.environ.get("TEST_ALL_ISAS") else isas[:1])]


@dataclass(frozen=True)
class Prompt:
    """One request.

    Attributes:
        token_ids: the prompt.
        num_tokens: output tokens.
        arrives_at: engine step at which it is added.
        temperature: 0 is greedy.
        seed: of its sampling noise.
        params: all sampling parameters instead of those above.
    """

    token_ids: tuple[int, ...]
    num_tokens: int = 12
    arrives_at: int = 0
    temperature: float = 0.0
    seed: int = 0
    params: SamplingParams | None = None


@dataclass(frozen=True)
class Schedule:
    """How the work is cut.

    Attributes:
        name: for test ids.
        budget: tokens per step.
        max_num_seqs: requests at once.
        num_blocks: KV blocks, the null block included; few of them force preemption.
        enable_prefix_caching: share blocks of equal prefixes.
        runs: how often the requests are served; a second time finds its prefixes cached.
        speculation: where drafts come from.
        num_draft_tokens: of one request per step.
        is_deterministic: take PyTorch kernels that are batch-invariant.
    """

    name: str
    budget: int = 512
    max_num_seqs: int = 16
    num_blocks: int = 200
    enable_prefix_caching: bool = False
    runs: int = 1
    speculation: SpeculationConfig | None = None
    num_draft_tokens: int = 0
    is_deterministic: bool = False

    @property
    def limits(self) -> SchedulerConfig:
        return SchedulerConfig(
            max_num_batched_tokens=self.budget,
            max_num_seqs=self.max_num_seqs,
            num_draft_tokens=self.num_draft_tokens,
        )


WHOLE = Schedule("whole")
"""Every prompt in one piece."""


@dataclass
class Answer:
    """What one request got.

    Attributes:
        token_ids: sampled tokens.
        logits: one `[vocab_size]` float32 row per token.
        logprobs: one entry per token, if asked for.
        prompt_logprobs: of its prompt, from the second token on.
        sampler_states: what the sampler had learnt with each output.
    """

    token_ids: list[int] = field(default_factory=list)
    logits: list[torch.Tensor] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprobs] = field(default_factory=list)
    sampler_states: list[float | None] = field(default_factory=list)

    @property
    def stacked(self) -> torch.Tensor:
        """`[num_tokens, vocab_size]`."""
        return torch.stack(self.logits)


@dataclass
class Served:
    """Answers in the order of the prompts (of the last run), and what the scheduler did."""

    answers: list[Answer]
    num_steps: int = 0
    num_preempted: int = 0
    num_prefix_hits: int = 0
    num_draft_tokens: int = 0
    num_accepted: int = 0


def engine_config(
    folder: Path, dtype: DType, schedule: Schedule, quantization: Quantization, kv_cache_dtype: KVCacheDType = "auto"
) -> EngineConfig:
    """Configuration of a small engine."""
    model = ModelConfig(folder, folder, read_model_spec(folder), dtype, MAX_MODEL_LEN, quantization)
    return EngineConfig(
        model,
        CacheConfig(
            block_size=BLOCK_SIZE,
            kv_cache_dtype=kv_cache_dtype,
            enable_prefix_caching=schedule.enable_prefix_caching,
            num_blocks_override=schedule.num_blocks,
        ),
        schedule.limits,
        DeviceConfig(is_deterministic=schedule.is_deterministic),
        speculation=schedule.speculation,
    )


def serve(
    folder: Path,
    dtype: DType,
    prompts: Sequence[Prompt],
    schedule: Schedule = WHOLE,
    *,
    kernels: str,
    quantization: Quantization = "none",
    kv_cache_dtype: KVCacheDType = "auto",
    prepared: PreparedConfig | None = None,
) -> Served:
    """Serves the prompts to the end and checks that every block came back."""
    config = replace(engine_config(folder, dtype, schedule, quantization, kv_cache_dtype), prepared=prepared)
    with mock.patch.dict("os.environ", {envs.CPU_ISA.name: kernels}):
        runner = ModelRunner(config)
        runner.load()
    for writer in runner.save_prepared_weights():
        writer.join()
    scheduler = Scheduler(
        schedule.limits,
        num_blocks=runner.num_blocks,
        block_size=BLOCK_SIZE,
        enable_prefix_caching=schedule.enable_prefix_caching,
        max_model_len=MAX_MODEL_LEN,
        clock=itertools.count().__next__,  # steps that all take the same time, so that drafts always pay
    )
    served = Served([])
    for _ in range(schedule.runs):
        answers: dict[str, Answer] = {}
        _serve_once(runner, scheduler, prompts, answers, served)
        served.answers = [answers[str(index)] for index in range(len(prompts))]
    scheduler.check_integrity()
    return served


def _serve_once(
    runner: ModelRunner, scheduler: Scheduler, prompts: Sequence[Prompt], answers: dict[str, Answer], served: Served
) -> None:
    waiting = dict(enumerate(prompts))
    with recorded_logits() as rows:
        for step in range(_MAX_STEPS):
            for index in [index for index, prompt in waiting.items() if prompt.arrives_at <= step]:
                _add(scheduler, str(index), waiting.pop(index))
                answers[str(index)] = Answer()
            if not scheduler.has_work:
                if not waiting:
                    return
                continue
            scheduled = scheduler.schedule()
            rows.clear()
            result = runner.execute(scheduled)
            outputs = scheduler.update_from_output(scheduled, result)
            taken = {output.request_id: output for output in outputs.outputs}
            for request_id in result.sampled_token_ids:
                answer, output = answers[request_id], taken[request_id]
                answer.token_ids += output.new_token_ids
                answer.logits += rows[-1][: len(output.new_token_ids)]
                answer.logprobs += output.logprobs or []
                rows[-1] = rows[-1][1 + result.num_draft_tokens.get(request_id, 0) :]
            for output in outputs.outputs:
                answers[output.request_id].prompt_logprobs += output.prompt_logprobs or []
                answers[output.request_id].sampler_states.append(output.sampler_state)
            served.num_steps += 1
            if outputs.stats:
                served.num_preempted += outputs.stats.num_preempted
                served.num_prefix_hits += outputs.stats.prefix_cache_hits
                served.num_draft_tokens += outputs.stats.num_draft_tokens
                served.num_accepted += sum(outputs.stats.num_accepted_per_position)
    raise AssertionError(f"The requests did not finish in {_MAX_STEPS} steps.")


def _add(scheduler: Scheduler, request_id: str, prompt: Prompt) -> None:
    plain = SamplingParams(temperature=prompt.temperature, max_tokens=prompt.num_tokens, ignore_eos=True)
    params = prompt.params or plain
    scheduler.add_request(EngineCoreRequest(request_id, list(prompt.token_ids), params, seed=prompt.seed))


@contextmanager
def recorded_logits() -> Iterator[list[torch.Tensor]]:
    """Collects a copy of the logits of each call of the sampler; a step's last call is the model's."""
    rows: list[torch.Tensor] = []
    sample = Sampler.sample

    def recording(self: Sampler, logits: torch.Tensor, metadata: SamplingMetadata) -> SamplerOutput:
        rows.append(logits.clone())
        return sample(self, logits, metadata)

    with mock.patch.object(Sampler, "sample", recording):
        yield rows
