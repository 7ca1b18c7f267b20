"""The performance and connection suites: figures of a server that runs, and whether it answers at all."""

from __future__ import annotations

import statistics
import time
from typing import Any

from tests.client.checks import CheckSkippedError, Target, expect
from vllm_mxext.client.inference import ANY_MODEL
from vllm_mxext.client.vllm_client import VllmClient

NUM_SINGLE = 5
BATCH = 8
PARAMETERS = {"max_tokens": 16, "temperature": 0.0, "ignore_eos": True}
"""Of measured calls: as many tokens for each, so that times can be compared."""

_PROMPT = "Explain in one sentence what number {} is good for."


def single_inference(target: Target) -> dict[str, Any]:
    """Seconds of one call at a time; the first, which warms the server, is not counted."""
    with _client(target) as client:
        client.run_inference(target.model, _PROMPT.format("zero"), PARAMETERS)
        times, tokens = [], 0
        for number in range(NUM_SINGLE):
            began_s = time.perf_counter()
            result = client.run_inference(target.model, _PROMPT.format(number), PARAMETERS)
            times.append(time.perf_counter() - began_s)
            tokens += _num_tokens(result)
    return {
        "num_calls": NUM_SINGLE,
        "median_s": statistics.median(times),
        "min_s": min(times),
        "max_s": max(times),
        "output_tokens_per_second": tokens / sum(times),
    }


def batch_inference(target: Target) -> dict[str, Any]:
    """Seconds of a batch, its inputs per second, and how much faster it is than the same prompts one by one."""
    prompts = [_PROMPT.format(100 + number) for number in range(BATCH)]
    others = [_PROMPT.format(200 + number) for number in range(BATCH)]
    with _client(target) as client:
        client.run_inference(target.model, _PROMPT.format("zero"), PARAMETERS)
        began_s = time.perf_counter()
        results = client.run_inference(target.model, prompts, PARAMETERS)
        batch_s = time.perf_counter() - began_s
        began_s = time.perf_counter()
        for prompt in others:
            client.run_inference(target.model, prompt, PARAMETERS)
        single_s = time.perf_counter() - began_s
    _num_tokens(results[0])
    expect(all(one["metadata"]["finish_reason"] for one in results), "Answers do not say why they ended.")
    return {
        "batch_size": BATCH,
        "batch_s": batch_s,
        "one_by_one_s": single_s,
        "inputs_per_second": BATCH / batch_s,
        "batch_speedup": single_s / batch_s,
    }


def precision_modes(target: Target) -> dict[str, Any]:
    """Precisions cannot be compared on one server, which has one."""
    del target
    raise CheckSkippedError(
        "A server has the precision it was started with; start one for each (--dtype, --quantization) and compare the "
        "files of this suite."
    )


def server_available(target: Target) -> dict[str, Any]:
    """The server says that it is healthy."""
    with _client(target) as client:
        client.read_text("/health")
    return {}


def model_available(target: Target) -> dict[str, Any]:
    """The model is among those that are served."""
    with _client(target) as client:
        card = client.get_model(target.model)
    return {"id": card["id"], "max_model_len": card.get("max_model_len")}


def inference_works(target: Target) -> dict[str, Any]:
    """The model answers, as a whole and as a stream."""
    with _client(target) as client:
        result = client.run_inference(target.model, "Hello, world!", PARAMETERS)
        _num_tokens(result)
        expect(result["text"], "The answer has no text.")
        served = result["metadata"]["model"]
        expect(target.model in (*ANY_MODEL, served), f"Another model has answered: {served}.")
        pieces = list(client.stream_generation(target.model, "Hello, world!", PARAMETERS))
    expect(pieces, "The stream brought no text.")
    return {"text": result["text"], "num_pieces": len(pieces)}


PERFORMANCE = (single_inference, batch_inference, precision_modes)
REAL = (server_available, model_available, inference_works)


def _num_tokens(result: dict[str, Any]) -> int:
    """Returns how many tokens a result has taken; of one of a batch, all of the batch's."""
    metadata = result["metadata"]
    usage = metadata.get("batch", metadata).get("usage")
    expect(isinstance(usage, dict), "The server does not say how many tokens there were (usage).")
    expect(usage.get("completion_tokens", 0) > 0, "The server generated no tokens.")
    return int(usage["completion_tokens"])


def _client(target: Target) -> VllmClient:
    return VllmClient(base_url=target.url, timeout=target.timeout_s, max_retries=0)
