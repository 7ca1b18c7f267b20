"""`ModelRunner`: owns weights, KV cache and rows on one device, and executes what the scheduler chose."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.memory_plan import MemoryPlan, plan_memory
from vllm_mxext.errors import EngineNotReadyError
from vllm_mxext.logger import init_logger
from vllm_mxext.logits_processors import load_logits_processors
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.kernels.selection import select_kernels
from vllm_mxext.native.layers.activations import Activations
from vllm_mxext.native.models.decoder import Decoder
from vllm_mxext.native.models.prepared.store import PreparedWeights, find_prepared_weights
from vllm_mxext.native.models.weights import load_weights
from vllm_mxext.native.protocol import ModelRunnerOutput, SchedulerOutput
from vllm_mxext.native.sampling.processors import LogitsProcessors
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.native.structured.builds import GrammarBuilds
from vllm_mxext.native.structured.rows import GrammarRows
from vllm_mxext.native.worker.constrained_rows import advance, with_masks
from vllm_mxext.native.worker.device_memory import device_memory
from vllm_mxext.native.worker.input_batch import InputBatch, StepInputs
from vllm_mxext.native.worker.kv_cache import KVCache, allocate_kv_cache
from vllm_mxext.native.worker.prompt_logprobs import PromptLogprobs
from vllm_mxext.native.worker.row_sampling import row_sampling
from vllm_mxext.native.worker.step_buffers import StepBuffers

logger = init_logger(__name__)

LoadProgress = Callable[[float], None]

_DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


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
    weights_bytes: int
    buffers: Activations
    decoder: Decoder
    cache: KVCache
    batch: InputBatch
    prompts: PromptLogprobs
    sampler: Sampler


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
        self._dtype = _DTYPES[config.model.dtype]
        self._loaded: _Loaded | None = None
        self._prepared: PreparedWeights | None = None

    @property
    def num_blocks(self) -> int:
        """KV blocks, the null block included; a result of `load()`."""
        return self._require_loaded().plan.num_blocks

    @property
    def kernels(self) -> Kernels:
        """The kernel set in use; a result of `load()`."""
        return self._require_loaded().kernels

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
        logger.info("Memory plan for %s on %s:\n%s", config.model.path.name, self._device, plan.table())
        if self._device.type == "cpu":
            torch.set_num_threads(config.device.num_threads)
        kernels = select_kernels(self._device, self._dtype, config.device.num_threads)
        # The KV cache comes before the weights: a block or head size that cannot run is told at once.
        cache = allocate_kv_cache(config.model.spec, config.cache, kernels, plan.num_blocks, self._dtype, self._device)
        self._prepared = find_prepared_weights(config, kernels)
        parts = self._prepared.open() if self._prepared else None
        weights = load_weights(config.model, kernels, self._dtype, self._device, progress, parts)
        limits = config.scheduler
        buffers = Activations(
            config.model.spec, limits.max_num_batched_tokens, limits.max_num_seqs, self._dtype, self._device
        )
        self._loaded = _Loaded(
            kernels=kernels,
            plan=plan,
            weights_bytes=weights.num_bytes,
            buffers=buffers,
            decoder=Decoder(kernels, weights, buffers),
            cache=cache,
            batch=self._make_batch(),
            prompts=PromptLogprobs(config.model.spec.vocab_size, len(buffers.logits), self._device),
            sampler=Sampler(row_sampling(kernels)),
        )
        logger.info(
            "Loaded %s with %s kernels in %.1f s", config.model.path.name, kernels.name, time.monotonic() - started_s
        )

    def save_prepared_weights(self) -> threading.Thread | None:
        """Begins to write the prepared file if one is wanted and there was none to load; returns who writes it."""
        return self._prepared.save() if self._prepared else None

    def memory_report(self) -> MemoryReport:
        """Planned and actual bytes; a result of `load()`."""
        loaded = self._require_loaded()
        activation_bytes = loaded.buffers.num_bytes + loaded.batch.num_bytes
        return MemoryReport(loaded.plan, loaded.weights_bytes, activation_bytes, loaded.cache.num_bytes)

    @torch.inference_mode()
    def execute(self, scheduled: SchedulerOutput) -> ModelRunnerOutput:
        """Computes one step and samples a token for every request that has caught up.

        A negative token says that a request's logits were not usable (`FAILED_TOKEN_ID`): it has to be ended.
        """
        loaded = self._require_loaded()
        loaded.batch.update(scheduled)
        prompt_rows = loaded.prompts.rows(scheduled)
        if self._grammars is not None:
            self._grammars.update(scheduled)
        if not scheduled.num_scheduled_tokens:
            return ModelRunnerOutput({})
        inputs = loaded.batch.gather(scheduled.num_scheduled_tokens)
        if self._grammars is not None:
            self._grammars.begin_masks(inputs.sampled_request_ids)
        logits = loaded.decoder.forward(inputs.forward, loaded.cache.layers, prompt_rows)
        prompt_logprobs = prompt_rows.logprobs if prompt_rows else {}
        if not inputs.sampled_request_ids:
            self._wait_for_device()
            return ModelRunnerOutput({}, prompt_logprobs=prompt_logprobs)
        return replace(self._sample(loaded, inputs, logits), prompt_logprobs=prompt_logprobs)

    def _sample(self, loaded: _Loaded, inputs: StepInputs, logits: torch.Tensor) -> ModelRunnerOutput:
        rows, names = inputs.sampled_rows, inputs.sampled_request_ids
        metadata = loaded.batch.sampling_metadata(rows)
        if self._grammars is not None:
            metadata = with_masks(self._grammars, names, metadata)
        output = loaded.sampler.sample(logits, metadata)
        loaded.batch.append_sampled(rows, output.token_ids)
        for i, state in output.states.items():
            loaded.batch.keep_sampler_state(int(rows[i]), state)
        result = ModelRunnerOutput(
            sampled_token_ids={
                name: [token_id] for name, token_id in zip(names, output.token_ids.tolist(), strict=True)
            },
            logprobs={names[row]: [logprobs] for row, logprobs in output.logprobs.items()},
            sampler_states={names[row]: state for row, state in output.states.items()},
            errors={names[row]: error for row, error in output.errors.items()},
        )
        if self._grammars is not None:
            advance(self._grammars, loaded.batch, metadata, result)
        return result

    def _wait_for_device(self) -> None:
        """Keeps the next step from overwriting host buffers that are still being copied."""
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()

    def _make_batch(self) -> InputBatch:
        model, limits, block_size = self._config.model, self._config.scheduler, self._config.cache.block_size
        max_blocks = -(-model.max_model_len // block_size)
        plugins = load_logits_processors(self._config.logits_processors)
        return InputBatch(
            max_num_seqs=limits.max_num_seqs,
            max_model_len=model.max_model_len,
            block_size=block_size,
            buffers=StepBuffers(limits.max_num_batched_tokens, limits.max_num_seqs, max_blocks, self._device),
            processors=LogitsProcessors(plugins) if plugins else None,
        )

    def _require_loaded(self) -> _Loaded:
        if self._loaded is None:
            raise EngineNotReadyError("The model is not loaded yet; call load() first.")
        return self._loaded
