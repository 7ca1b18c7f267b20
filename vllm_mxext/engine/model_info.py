"""What an engine tells about its model before anything is loaded."""

from __future__ import annotations

import time

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.frontend import FrontendConfig
from vllm_mxext.engine.client import ModelInfo


def model_info(config: EngineConfig, frontend: FrontendConfig) -> ModelInfo:
    """Gathers the facts about the model that a configuration names; serving begins now."""
    model = config.model
    max_queued = frontend.admission.max_num_queued_reqs
    return ModelInfo(
        served_names=model.served_model_names or (str(model.path),),
        root=str(model.path),
        max_model_len=model.max_model_len,
        vocab_size=model.spec.vocab_size,
        max_logprobs=model.max_logprobs,
        default_sampling=dict(frontend.default_sampling),
        created_s=int(time.time()),
        max_open_samples=None if max_queued is None else config.scheduler.max_num_seqs + max_queued,
        num_draft_tokens=config.scheduler.num_draft_tokens,
        max_loras=0 if config.lora is None else config.lora.max_loras,
        max_lora_rank=0 if config.lora is None else config.lora.max_lora_rank,
    )
