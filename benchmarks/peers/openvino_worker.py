"""Serves a benchmark with OpenVINO GenAI's continuous batching: `openvino_worker.py FOLDER NUM_THREADS`.

FOLDER is what `optimum-cli export openvino --task text-generation-with-past` wrote.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai
from protocol import Generate, serve


def load() -> Generate:
    """Loads the converted model."""
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = 2
    scheduler.max_num_batched_tokens = 2048
    scheduler.enable_prefix_caching = False
    pipeline = openvino_genai.ContinuousBatchingPipeline(
        sys.argv[1], scheduler, "CPU", {"INFERENCE_NUM_THREADS": int(sys.argv[2])}
    )

    def generate(prompts: Sequence[Sequence[int]], output_len: int) -> list[int]:
        config = openvino_genai.GenerationConfig(max_new_tokens=output_len, ignore_eos=True, do_sample=False)
        inputs = [openvino.Tensor(np.array([prompt], dtype=np.int64)) for prompt in prompts]
        results = pipeline.generate(inputs, [config] * len(prompts))
        return [len(result.m_generation_ids[0]) for result in results]

    return generate


if __name__ == "__main__":
    serve(load)
