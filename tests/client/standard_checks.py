"""The standard suite: what the client promises, against a server that echoes prompts."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from tests.client.checks import Target, expect
from vllm_mxext.client import handlers
from vllm_mxext.client.errors import BadRequestError, ClientError, ConnectionFailedError, NotFoundError
from vllm_mxext.client.optimization import optimize_model
from vllm_mxext.client.vllm_client import VllmClient

NOBODY = "http://127.0.0.1:9"
"""An address where no server is."""


def endpoint_handler_creation(target: Target) -> dict[str, Any]:
    """Handlers keep their model and their parameters."""
    handler = handlers.create_vllm_endpoint_handler_with_params(target.url, target.model, {"max_tokens": 2})
    expect(handler("abcd")["text"] == "ab", "A handler's parameters do not reach the server.")
    expect(handler("abcd", {"max_tokens": 3})["text"] == "abc", "A call's parameters do not win.")
    return {"model": handler.model}


def request_formatting(target: Target) -> dict[str, Any]:
    """Structured requests put the context before the prompt."""
    handler = handlers.create_vllm_endpoint_handler(target.url, target.model)
    result = handlers.format_structured_request(
        handler, {"prompt": "cd", "context": "ab", "options": {"return_logprobs": True}}
    )
    expect(result["text"] == "ab\n\ncd", "The context does not come before the prompt.")
    expect(result["logprobs"]["tokens"], "There are no log probabilities.")
    return {"num_tokens": len(result["logprobs"]["tokens"])}


def response_parsing(target: Target) -> dict[str, Any]:
    """Results have text, reason, model and usage."""
    with _client(target) as client:
        result = client.run_inference(target.model, "abc")
    metadata = result["metadata"]
    expect(result["text"] == "abc" and metadata["finish_reason"] == "stop", "Text or reason are wrong.")
    usage = metadata["usage"]
    total = usage["prompt_tokens"] + usage["completion_tokens"]
    expect(usage["total_tokens"] == total, "The tokens do not add up.")
    return {"usage": dict(usage)}


def error_handling(target: Target) -> dict[str, Any]:
    """Errors have a class and a status, and open no circuit unless the server is at fault."""
    with _client(target) as client:
        for model, prompt, kind in (
            ("no-such-model", "a", NotFoundError),
            (target.model, "a" * 10_000, BadRequestError),
        ):
            expect(isinstance(_error(client, model, prompt), kind), f"There is no {kind.__name__}.")
        expect(client.circuit_state == "CLOSED", "A wrong request opens the circuit.")
    return {}


def circuit_breaker(target: Target) -> dict[str, Any]:
    """Failures open the circuit; it can be closed by hand."""
    del target
    with VllmClient(base_url=NOBODY, max_retries=0, failure_threshold=2) as client:
        for _ in range(2):
            expect(isinstance(_error(client, "", "a"), ConnectionFailedError), "A server that is not there answers.")
        expect(client.circuit_state == "OPEN", "Failures do not open the circuit.")
        failures = client.failure_count
        client.circuit_state = "CLOSED"
        expect(client.circuit_state == "CLOSED", "The circuit cannot be closed by hand.")
    return {"failure_count": failures}


def model_metadata(target: Target) -> dict[str, Any]:
    """A model's card says how long its context is."""
    info = handlers.get_model_info(target.url, target.model)
    expect(info["max_model_len"] > 0, "The card does not say how long the context is.")
    statistics = handlers.get_model_statistics(target.url, target.model)
    expect(statistics["server"], "The server shows no figures.")
    return {"id": info["id"], "max_model_len": info["max_model_len"]}


def inference_methods(target: Target) -> dict[str, Any]:
    """Prompts, conversations and streams are answered."""
    with _client(target) as client:
        whole = client.run_inference(target.model, "abc", priority=0)["text"]
        chat = client.run_inference(target.model, [{"role": "user", "content": "abc"}], priority=2)["text"]
        streamed = "".join(client.stream_generation(target.model, "abc"))
        expect(whole == streamed == "abc", "A streamed answer differs from a whole one.")
        expect("abc" in chat, "A conversation is not answered.")
        priorities = list(client.get_metrics()["priorities"])
    expect(priorities == ["0", "1", "2"], "Figures do not tell priorities apart.")
    return {"priorities": priorities}


def batch_processing(target: Target) -> dict[str, Any]:
    """Batches are answered in order, and one wrong prompt harms no other."""
    prompts = [f"prompt {number}" for number in range(10)]
    results, metrics = handlers.process_batch_with_metrics(target.url, [*prompts, "a" * 10_000], target.model)
    expect([one["text"] for one in results[:-1]] == prompts, "A batch is not answered in order.")
    expect(results[-1]["error"]["status"] == 400 and metrics["num_failed"] == 1, "A wrong prompt is not told.")
    return metrics


def concurrent_calls(target: Target) -> dict[str, Any]:
    """Many threads may call; each gets its own answer, and nothing is left behind."""
    with _client(target) as client, ThreadPoolExecutor(8) as pool:
        prompts = [f"p{number}" for number in range(40)]
        texts = list(pool.map(lambda prompt: client.run_inference(target.model, prompt)["text"], prompts))
        expect(texts == prompts, "A thread got another's answer.")
        expect(client.current_requests == len(client.request_queue) == 0, "Something is left behind.")
        return dict(client.get_metrics()["batches"])


def endpoint_multiplexing(target: Target) -> dict[str, Any]:
    """Endpoints have limits and figures of their own."""
    with _client(target) as client:
        endpoint = client.create_endpoint(api_key="key1", max_concurrent_requests=5, max_retries=3)
        client.make_request_with_endpoint(endpoint_id=endpoint, data="abc", model=target.model)
        stats = client.get_stats()
    expect(stats[endpoint]["requests"]["total"] == 1 and stats[endpoint]["limit"] == 5, "Its figures are wrong.")
    expect("requests" not in stats["main"], "Another endpoint was asked.")
    return {"endpoints": list(stats)}


def optimization_profiles(target: Target) -> dict[str, Any]:
    """Profiles report what was applied, and it is."""
    applied = {}
    for kind in ("speed", "memory", "balanced"):
        applied[kind] = optimize_model(target.url, target.model, optimization_type=kind)["applied"]
        client = handlers.client_of(target.url)
        expect(all(getattr(client, name) == value for name, value in applied[kind].items()), f"{kind} is not applied.")
    return applied


STANDARD = (
    endpoint_handler_creation,
    request_formatting,
    response_parsing,
    error_handling,
    circuit_breaker,
    model_metadata,
    inference_methods,
    batch_processing,
    concurrent_calls,
    endpoint_multiplexing,
    optimization_profiles,
)


def _client(target: Target) -> VllmClient:
    return VllmClient(base_url=target.url, timeout=target.timeout_s, max_retries=0)


def _error(client: VllmClient, model: str, prompt: str) -> ClientError | None:
    try:
        client.run_inference(model, prompt)
    except ClientError as error:
        return error
    return None
