"""Serves a benchmark with OpenVINO GenAI's continuous batching.

The model is what `optimum-cli export openvino --task text-generation-with-past` wrote.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import openvino_genai
from protocol import Engine, Prompts, serve


def load(settings: dict[str, Any]) -> Engine:
    """Loads the converted model."""
    model, options = settings["model"], {"INFERENCE_NUM_THREADS": settings["num_threads"]}
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = -(-settings["kv_tokens"] * settings["kv_token_bytes"] // 2**30)
    scheduler.max_num_batched_tokens = 2048
    scheduler.max_num_seqs = settings["max_num_seqs"]
    scheduler.enable_prefix_caching = settings["enable_prefix_caching"]
    pipeline = openvino_genai.ContinuousBatchingPipeline(model, scheduler, "CPU", options)

    def generate(prompts: Prompts, output_len: int) -> list[list[int]]:
        config = openvino_genai.GenerationConfig(max_new_tokens=output_len, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, [config] * len(prompts))
        return [list(result.m_generation_ids[0]) for result in results]

    def logits(prompt: Sequence[int]) -> Iterable[float]:
        # The pipeline shows no logits; the same model in the same runtime does.
        request = (
            openvino.Core().compile_model(Path(model) / "openvino_model.xml", "CPU", options).create_infer_request()
        )
        ids = np.array([prompt], dtype=np.int64)
        inputs = {
            "input_ids": ids,
            "attention_mask": np.ones_like(ids),
            "position_ids": np.arange(ids.shape[1], dtype=np.int64)[None],
            "beam_idx": np.zeros(1, dtype=np.int32),
        }
        values: list[float] = request.infer(inputs)["logits"][0, -1].tolist()
        return values

    return Engine(generate, logits=logits)


if __name__ == "__main__":
    serve(load)
