"""`ModelRunner`: owns weights, KV cache and rows on one device, and executes what the scheduler chose."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, replace

import torch

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.memory_plan import MemoryPlan, plan_memory
from vllm_mxext.errors import EngineNotReadyError
from vllm_mxext.logger import init_logger
from vllm_mxext.logits_processors import load_logits_processors
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.kernels.selection import select_kernels
from vllm_mxext.native.protocol import ModelRunnerOutput, SchedulerOutput
from vllm_mxext.native.sampling.metadata import SamplerOutput, SamplingMetadata
from vllm_mxext.native.sampling.processors import LogitsProcessors
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.native.structured.builds import GrammarBuilds
from vllm_mxext.native.structured.rows import GrammarRows
from vllm_mxext.native.worker.constrained_rows import follow, with_masks
from vllm_mxext.native.worker.device_memory import device_memory
from vllm_mxext.native.worker.draft_model import DraftModel
from vllm_mxext.native.worker.drafting import NgramProposer, Proposer
from vllm_mxext.native.worker.input_batch import InputBatch, StepInputs
from vllm_mxext.native.worker.loaded_model import DTYPES, LoadedModel, LoadProgress, load_model
from vllm_mxext.native.worker.lora_slots import LoRASlots
from vllm_mxext.native.worker.prompt_logprobs import PromptLogprobs
from vllm_mxext.native.worker.row_adapters import RowAdapters
from vllm_mxext.native.worker.row_sampling import row_sampling
from vllm_mxext.native.worker.runs import agreeing, split_runs
from vllm_mxext.native.worker.step_buffers import StepBuffers

logger = init_logger(__name__)


def _ignore_progress(fraction: float) -> None:
    """Reports to nobody."""


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Plan and reality after loading, in bytes.

    Attributes:
        plan: what was planned.
        weights_bytes: tensors of the weights and the rotary table.
        activation_bytes: forward buffers and persistent batch.
        kv_cache_bytes: KV blocks.
    """

    plan: MemoryPlan
    weights_bytes: int
    activation_bytes: int
    kv_cache_bytes: int


@dataclass(frozen=True, slots=True)
class _Loaded:
    kernels: Kernels
    plan: MemoryPlan
    model: LoadedModel
    draft: LoadedModel | None
    batch: InputBatch
    prompts: PromptLogprobs
    sampler: Sampler
    proposer: Proposer | None
    adapters: LoRASlots | None

    @property
    def models(self) -> tuple[LoadedModel, ...]:
        return (self.model,) if self.draft is None else (self.model, self.draft)


class ModelRunner:
    """Runs one model on one device.

    `load()` comes first, then one `execute()` per engine step; not thread-safe.

    Args:
        config: the engine's configuration.
        grammars: where the grammars of requests come from; without it, none may have one.
    """

    def __init__(self, config: EngineConfig, grammars: GrammarBuilds | None = None) -> None:
        self._config = config
        self._grammars = None if grammars is None else GrammarRows(grammars, config.device.num_threads)
        self._device = torch.device(config.device.device)
        self._dtype = DTYPES[config.model.dtype]
        self._loaded: _Loaded | None = None

    @property
    def num_blocks(self) -> int:
        """KV blocks, the null block included; a result of `load()`."""
        return self._require_loaded().plan.num_blocks

    @property
    def kernels(self) -> Kernels:
        """The kernel set in use; a result of `load()`."""
        return self._require_loaded().kernels

    @property
    def adapters(self) -> LoRASlots:
        """Where adapters are read and placed; a result of `load()` of an engine with adapters."""
        adapters = self._require_loaded().adapters
        assert adapters is not None, "The engine was configured without adapters."
        return adapters

    def load(self, progress: LoadProgress = _ignore_progress) -> None:
        """Plans memory, loads weights and allocates everything `execute()` uses.

        Args:
            progress: called with the share done, from 0 to 1.

        Raises:
            ConfigError: the model does not fit, or its files are missing or broken.
        """
        config, started_s = self._config, time.monotonic()
        progress(0.0)
        plan = plan_memory(config, device_memory(config.device.device))
        logger.info("Memory plan for %s on %s:\n%s", config.model.label, self._device, plan.table())
        if self._device.type == "cpu":
            torch.set_num_threads(config.device.num_threads)
        kernels = self._select_kernels()
        share = 1 - plan.draft_weights_bytes / plan.weights_bytes
        model = load_model(
            config,
            kernels,
            num_blocks=plan.num_blocks,
            num_logits_rows=config.scheduler.num_logits_rows,
            progress=lambda fraction: progress(share * fraction),
        )
        draft = self._load_draft(kernels, plan, lambda fraction: progress(share + (1 - share) * fraction))
        adapters = None
        if config.lora is not None:
            adapters = LoRASlots(config, model.decoder.weights, self._select_kernels())
        self._loaded = _Loaded(
            kernels=kernels,
            plan=plan,
            model=model,
            draft=draft,
            batch=self._make_batch(kernels, adapters),
            prompts=PromptLogprobs(config.model.spec.vocab_size, len(model.buffers.logits), self._device),
            sampler=Sampler(row_sampling(kernels)),
            proposer=self._make_proposer(kernels, draft, plan),
            adapters=adapters,
        )
        self._log_speculation()
        logger.info(
            "Loaded %s with %s kernels in %.1f s", config.model.label, kernels.name, time.monotonic() - started_s
        )

    def save_prepared_weights(self) -> list[threading.Thread]:
        """Begins to write the prepared files that are wanted and were not there to load; returns who writes them."""
        if self._loaded is None:
            return []
        writers = [model.prepared.save() for model in self._loaded.models if model.prepared]
        return [writer for writer in writers if writer]

    def memory_report(self) -> MemoryReport:
        """Planned and actual bytes; a result of `load()`."""
        loaded = self._require_loaded()
        models = loaded.models
        return MemoryReport(
            loaded.plan,
            weights_bytes=sum(model.weights_bytes for model in models),
            activation_bytes=loaded.batch.num_bytes + sum(model.buffers.num_bytes for model in models),
            kv_cache_bytes=sum(model.cache.num_bytes for model in models),
        )

    @torch.inference_mode()
    def execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        """Computes one step and samples a token for every request that has caught up.

        A negative token says that a request's logits were not usable (`FAILED_TOKEN_ID`): it has to be ended.
        """
        loaded = self._require_loaded()
        if scheduled.adapter_slots:
            self.adapters.fill_slots(scheduled.adapter_slots)
        loaded.batch.update(scheduled)
        scheduled = loaded.batch.arrange(scheduled)
        if self._grammars is not None:
            self._grammars.update(scheduled)
        if not scheduled.num_scheduled_tokens:
            loaded.prompts.drop(scheduled.finished_request_ids)
            return ModelRunnerOutput({})
        drafts: dict[str, list[int]] = {}
        is_catching_up = False
        if scheduled.num_draft_tokens and loaded.proposer is not None:
            drafts = loaded.proposer.propose(loaded.batch, scheduled.num_draft_tokens)
            is_catching_up = loaded.proposer.is_catching_up
        prompt_rows = loaded.prompts.rows(scheduled, drafts)
        inputs = loaded.batch.gather(scheduled, drafts)
        if self._grammars is not None:
            self._grammars.begin_masks(inputs.sampled_request_ids, drafts)
        logits = loaded.model.forward(inputs.forward, prompt_rows)
        if inputs.sampled_request_ids:
            result = self._sample(loaded, inputs, logits)
        else:
            self._wait_for_device()
            result = ModelRunnerOutput({})
        result.num_draft_tokens.update((name, len(token_ids)) for name, token_ids in drafts.items())
        loaded.batch.trim(scheduled.num_draft_tokens)
        if prompt_rows or is_catching_up:
            prompt_logprobs = prompt_rows.logprobs if prompt_rows else {}
            result = replace(result, prompt_logprobs=prompt_logprobs, is_catching_up=is_catching_up)
        return result

    def _sample(self, loaded: _Loaded, inputs: StepInputs, logits: torch.Tensor) -> ModelRunnerOutput:
        """Samples every position, and keeps of each request what it would have sampled one by one."""
        metadata = loaded.batch.sampling_metadata(inputs.sampled_rows, inputs.sampled_lengths)
        grammars = self._grammars
        if grammars is not None:
            metadata = with_masks(grammars, inputs, metadata)
        output = loaded.sampler.sample(logits, metadata)
        names, rows = inputs.sampled_request_ids, inputs.sampled_rows
        if len(names) < len(rows) or (grammars is not None and any(name in grammars for name in names)):
            return self._keep(loaded, inputs, metadata, output)
        loaded.batch.append_sampled(rows, output.token_ids)
        for row, state in output.states.items():
            loaded.batch.keep_sampler_state(int(rows[row]), state)
        return ModelRunnerOutput(
            sampled_token_ids={
                name: [token_id] for name, token_id in zip(names, output.token_ids.tolist(), strict=True)
            },
            logprobs={names[row]: [logprobs] for row, logprobs in output.logprobs.items()},
            sampler_states={names[row]: state for row, state in output.states.items()},
            errors={names[row]: error for row, error in output.errors.items()},
        )

    def _keep(
        self, loaded: _Loaded, inputs: StepInputs, metadata: SamplingMetadata, output: SamplerOutput
    ) -> ModelRunnerOutput:
        """Goes through the requests one by one: some have several positions, or a grammar that adds to them."""
        batch, grammars, result = loaded.batch, self._grammars, ModelRunnerOutput({})
        placed = batch.placed_tokens(inputs).tolist()
        for run in split_runs(inputs, output.token_ids.tolist(), placed):
            name, first = run.request_id, run.first_row
            if first in output.errors:
                result.errors[name] = output.errors[first]
            if grammars is not None and name in grammars:
                outcome = follow(grammars, batch, metadata, run, result)
            else:
                outcome = agreeing(run)
            result.sampled_token_ids[name] = outcome.token_ids
            result.num_accepted_tokens[name] = outcome.num_accepted
            if first in output.logprobs and outcome.token_ids:
                result.logprobs[name] = [output.logprobs[first + index] for index in range(len(outcome.token_ids))]
            if outcome.last_row in output.states:
                result.sampler_states[name] = output.states[outcome.last_row]
                batch.keep_sampler_state(int(inputs.sampled_rows[first]), output.states[outcome.last_row])
            batch.append_tokens(name, outcome.token_ids)
        return result

    def _wait_for_device(self) -> None:
        """Keeps the next step from overwriting host buffers that are still being copied."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _select_kernels(self) -> Kernels:
        device = self._config.device
        return select_kernels(self._device, self._dtype, device.num_threads, is_deterministic=device.is_deterministic)

    def _make_batch(self, kernels: Kernels, adapters: LoRASlots | None) -> InputBatch:
        model, limits, block_size = self._config.model, self._config.scheduler, self._config.cache.block_size
        max_blocks = -(-model.max_model_len // block_size)
        plugins = load_logits_processors(self._config.logits_processors)
        return InputBatch(
            max_num_seqs=limits.max_num_seqs,
            max_model_len=model.max_model_len,
            block_size=block_size,
            buffers=StepBuffers(
                limits.max_num_batched_tokens, limits.max_num_seqs, limits.max_num_samples, max_blocks, self._device
            ),
            processors=LogitsProcessors(plugins) if plugins else None,
            adapters=None if adapters is None else RowAdapters(limits.max_num_seqs, kernels, adapters.ends),
        )

    def _log_speculation(self) -> None:
        speculation, num_drafts = self._config.speculation, self._config.scheduler.num_draft_tokens
        if speculation is None:
            return
        source = f"prompt lookup of {speculation.prompt_lookup_min} to {speculation.prompt_lookup_max} tokens"
        if speculation.draft is not None:
            source = f"draft model {speculation.draft.label}"
        logger.info("Speculation: %s, up to %d draft tokens per request and step, where they pay.", source, num_drafts)

    def _load_draft(self, kernels: Kernels, plan: MemoryPlan, progress: LoadProgress) -> LoadedModel | None:
        config = self._config.draft_engine
        if config is None:
            return None
        return load_model(
            config,
            kernels,
            num_blocks=plan.num_blocks,
            num_logits_rows=config.scheduler.max_num_drafting,
            progress=progress,
        )

    def _make_proposer(self, kernels: Kernels, draft: LoadedModel | None, plan: MemoryPlan) -> Proposer | None:
        speculation = self._config.speculation
        if speculation is None:
            return None
        if draft is None or speculation.draft is None:
            return NgramProposer(speculation)
        return DraftModel(
            draft,
            Sampler(row_sampling(kernels)),
            num_blocks=plan.num_blocks,
            block_size=self._config.cache.block_size,
            max_model_len=speculation.draft.max_model_len,
        )

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise EngineNotReadyError("The model is not loaded yet; call load() first.")
        return self._loaded
