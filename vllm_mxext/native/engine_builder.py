"""Builds an `EngineCore` from its configuration: loads the model, sizes the KV cache, warms up (imports torch)."""

from __future__ import annotations

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.native.core.adapter_slots import AdapterSlots
from vllm_mxext.native.core.adapters import CoreAdapters
from vllm_mxext.native.core.scheduler import Scheduler
from vllm_mxext.native.core_messages import CoreInfo
from vllm_mxext.native.engine_core import EngineCore, ProgressReport
from vllm_mxext.native.protocol import EngineCoreRequest
from vllm_mxext.native.structured.builds import GrammarBuilds
from vllm_mxext.native.structured.gate import GrammarGate
from vllm_mxext.native.structured.vocabulary import Vocabulary, end_token_ids, make_vocabulary
from vllm_mxext.native.worker.model_runner import ModelRunner
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.loading import load_tokenizer

_WARM_UP_PROMPT_TOKENS = 64


def build_engine_core(config: EngineConfig, report: ProgressReport) -> EngineCore:
    """Loads an engine.

    Raises:
        ConfigError: it does not fit, or files of the checkpoint are missing or broken.
    """
    builds = GrammarBuilds(lambda: _load_vocabulary(config))
    runner = ModelRunner(config, builds)
    runner.load(lambda fraction: report("loading", fraction))
    slots = None if config.lora is None else AdapterSlots(config.lora)
    scheduler = Scheduler(
        config.scheduler,
        num_blocks=runner.num_blocks,
        block_size=config.cache.block_size,
        enable_prefix_caching=config.cache.enable_prefix_caching,
        max_model_len=config.model.max_model_len,
        adapters=slots,
    )
    info = CoreInfo(
        num_blocks=scheduler.num_usable_blocks,
        block_size=config.cache.block_size,
        kernels=runner.kernels.name,
        is_batch_invariant=runner.kernels.is_batch_invariant,
    )
    adapters = None if slots is None else CoreAdapters(slots, runner.adapters, scheduler)
    core = EngineCore(scheduler, runner, info, GrammarGate(builds), adapters)
    report("warming up", 0.0)
    _warm_up(core, config.model.max_model_len)
    report("warming up", 1.0)
    runner.save_prepared_weights()  # only now: until here it would delay the first token
    return core


def _load_vocabulary(config: EngineConfig) -> Vocabulary:
    model = config.model
    tokenizer = load_tokenizer(model.tokenizer_path)
    return make_vocabulary(tokenizer, model.spec.vocab_size, end_token_ids(model.spec, tokenizer))


def _warm_up(core: EngineCore, max_model_len: int) -> None:
    """Serves one short request, so that the first real one does not pay for threads and first touches of memory."""
    num_tokens = max(1, min(_WARM_UP_PROMPT_TOKENS, max_model_len - 2))
    params = SamplingParams(temperature=0.0, max_tokens=min(2, max_model_len - num_tokens), detokenize=False)
    core.add_request(EngineCoreRequest("warm-up", [0] * num_tokens, params, seed=0))
    while core.has_work:
        core.step()
    core.reset_prefix_cache()
