"""The documented functions that take a server's URL: handlers, batches, model information; one client per URL.

handler = create_vllm_endpoint_handler_with_params(url, model="default", parameters={"temperature": 0.7})
handler("Tell me about Python")["text"]
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from vllm_mxext.client.errors import BadRequestError, ClientError
from vllm_mxext.client.inference import Inputs
from vllm_mxext.client.vllm_client import VllmClient

_CLIENT_PARAMETERS = ("batch_size", "batch_timeout", "timeout", "max_retries", "max_concurrent_requests")
"""Parameters of a handler that are settings of its client, not fields of its requests."""

_STRUCTURED_FIELDS = ("prompt", "context", "options")
_OPTIONS = {"return_logprobs": "logprobs"}
"""Options of a structured request -> their names in the API."""


@dataclass(slots=True)
class _Clients:
    """The clients of this process by URL and key; a forked child makes its own."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    by_address: dict[tuple[int, str, str], VllmClient] = field(default_factory=dict)


_clients = _Clients()


def _unlock() -> None:
    """Replaces the lock in a forked child: the thread that held the old one does not exist there."""
    _clients.lock = threading.Lock()


os.register_at_fork(after_in_child=_unlock)


def client_of(url: str) -> VllmClient:
    """Returns this process's client for a URL, so that all functions share its breaker, limits and metrics."""
    key = (os.getpid(), url.rstrip("/").removesuffix("/v1"), os.environ.get("VLLM_API_KEY", ""))
    with _clients.lock:
        client = _clients.by_address.get(key)
        if client is None or client.is_closed:
            client = _clients.by_address[key] = VllmClient(base_url=url)
        return client


@dataclass(frozen=True, slots=True)
class EndpointHandler:
    """A callable for one model of one server: takes a prompt, prompts or a conversation, returns the result.

    Attributes:
        client: sends the requests.
        model: name of the model; `default` = whichever the server serves.
        parameters: fields of every request.
    """

    client: VllmClient
    model: str = "default"
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, inputs: Inputs, parameters: Mapping[str, Any] | None = None) -> Any:
        """Returns `{"text", "metadata"}`, or a list of them for several prompts; `parameters` override the handler's.

        Raises:
            ClientError: there is no answer; its class says why.
        """
        return self.client.run_inference(self.model, inputs, {**self.parameters, **(parameters or {})})


def create_vllm_endpoint_handler(endpoint_url: str, model: str = "default") -> EndpointHandler:
    """Returns a handler for a model of the server at this URL."""
    return EndpointHandler(client_of(endpoint_url), model)


def create_vllm_endpoint_handler_with_params(
    endpoint_url: str, model: str = "default", parameters: Mapping[str, Any] | None = None
) -> EndpointHandler:
    """Returns a handler whose requests have these parameters.

    Args:
        endpoint_url: the server's URL.
        model: name of the model.
        parameters: fields of the requests, such as `temperature`; `batch_size`, `batch_timeout`, `timeout`,
            `max_retries` and `max_concurrent_requests` are settings, for which the handler gets a client of its own.

    Raises:
        ConfigError: a setting is invalid.
    """
    fields = dict(parameters or {})
    own = {name: fields.pop(name) for name in _CLIENT_PARAMETERS if name in fields}
    if "batch_size" in own:
        own["max_batch_size"] = own.pop("batch_size")
    client = VllmClient(base_url=endpoint_url, **own) if own else client_of(endpoint_url)
    return EndpointHandler(client, model, fields)


def format_request_with_params(handler: EndpointHandler, inputs: Inputs, parameters: Mapping[str, Any]) -> Any:
    """Returns a handler's result for an input with parameters.

    Raises:
        ClientError: there is no answer; its class says why.
    """
    return handler(inputs, parameters)


def format_structured_request(handler: EndpointHandler, request: Mapping[str, Any]) -> Any:
    """Returns a handler's result for `{"prompt", "context", "options"}`; the context comes before the prompt.

    Args:
        handler: sends it.
        request: `options` are fields of the request; `return_logprobs` puts `logprobs` into the result.

    Raises:
        BadRequestError: the prompt is missing, or there is another field.
        ClientError: there is no answer; its class says why.
    """
    if not isinstance(request, Mapping):
        raise BadRequestError(f"A structured request is a mapping of fields, not {type(request).__name__}.")
    unknown = next((name for name in request if name not in _STRUCTURED_FIELDS), None)
    if unknown is not None:
        raise BadRequestError(f"A structured request has {', '.join(_STRUCTURED_FIELDS)}, and no '{unknown}'.")
    prompt = request.get("prompt")
    if not isinstance(prompt, str) or not prompt:
        raise BadRequestError("A structured request needs a prompt, as text.")
    context = request.get("context")
    options = request.get("options") or {}
    if not isinstance(options, Mapping):
        raise BadRequestError(f"Options of a structured request are fields by name, not {type(options).__name__}.")
    options = dict(options)
    for name, field_name in _OPTIONS.items():
        if options.pop(name, False):
            options.setdefault(field_name, 1)
    return handler(f"{context}\n\n{prompt}" if context else prompt, options)


def process_batch(endpoint_url: str, inputs: Sequence[str], model: str = "default") -> list[Any]:
    """Returns a result for each prompt, in their order; see `process_batch_with_params()`."""
    return process_batch_with_params(endpoint_url, inputs, model)


def process_batch_with_params(
    endpoint_url: str, inputs: Sequence[str], model: str = "default", parameters: Mapping[str, Any] | None = None
) -> list[Any]:
    """Returns a result for each prompt, in their order; one that failed has `text` None, and says why in `error`.

    Raises:
        ClientError: all of them failed; it is the first one's.
    """
    results = client_of(endpoint_url).run_each(model, inputs, parameters)
    failed = [one for one in results if isinstance(one, Exception)]
    if failed and len(failed) == len(results):
        raise failed[0]
    return [_failure(one) if isinstance(one, Exception) else one for one in results]


def process_batch_with_metrics(
    endpoint_url: str, inputs: Sequence[str], model: str = "default", parameters: Mapping[str, Any] | None = None
) -> tuple[list[Any], dict[str, Any]]:
    """Returns the results of `process_batch_with_params()`, and how long they took.

    Raises:
        ClientError: all of them failed; it is the first one's.
    """
    began_s = time.monotonic()
    results = process_batch_with_params(endpoint_url, inputs, model, parameters)
    duration_s = time.monotonic() - began_s
    num_failed = sum("error" in one for one in results)
    num_tokens = _num_output_tokens(results)
    return results, {
        "num_inputs": len(results),
        "num_failed": num_failed,
        "duration_s": duration_s,
        "inputs_per_second": (len(results) - num_failed) / duration_s if duration_s else None,
        "output_tokens": num_tokens,
        "output_tokens_per_second": num_tokens / duration_s if duration_s else None,
    }


def get_model_info(endpoint_url: str, model: str = "default") -> dict[str, Any]:
    """Returns the server's card of a model: its names, where it came from, how long its context is.

    Raises:
        ClientError: there is no such model, or no answer.
    """
    return client_of(endpoint_url).get_model(model)


def get_model_statistics(endpoint_url: str, model: str = "default") -> dict[str, Any]:
    """Returns figures of a model: `client`, about calls by these functions, and `server`, from its `/metrics`.

    `server` is None if the server has no metrics.

    Raises:
        ClientError: there is no such model, or no answer.
    """
    client = client_of(endpoint_url)
    name = str(client.get_model(model)["id"])
    measured = client.get_metrics()["models"]
    asked = {name, model, ""} if model == "default" else {name}
    calls = {one: figures for one, figures in measured.items() if one in asked}
    try:
        server = dict(_figures(client.read_text("/metrics"), name))
    except (ClientError, ValueError):  # none there, or another format
        return {"model": name, "client": calls, "server": None}
    return {"model": name, "client": calls, "server": server}


def _figures(text: str, model: str) -> Iterator[tuple[str, float]]:
    """Yields the series of a model from Prometheus text, without histogram buckets."""
    shared = (("model_name", model), ("engine", "0"))  # further engines of a server have figures of their own
    from prometheus_client.parser import text_string_to_metric_families  # noqa: PLC0415 - needed by few callers

    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            others = {label: value for label, value in sample.labels.items() if (label, value) not in shared}
            if sample.name.endswith(("_bucket", "_created")) or sample.labels.get("model_name", model) != model:
                continue
            shown = ",".join(f'{label}="{value}"' for label, value in sorted(others.items()))
            yield (f"{sample.name}{{{shown}}}" if shown else sample.name), sample.value


def _failure(error: Exception) -> dict[str, Any]:
    status = error.status if isinstance(error, ClientError) else None
    return {"text": None, "error": {"type": type(error).__name__, "message": str(error), "status": status}}


def _num_output_tokens(results: Sequence[Mapping[str, Any]]) -> int:
    """Sums output tokens; the usage of a batch, which every prompt of it carries, counts once."""
    total = 0.0
    for one in results:
        metadata = one.get("metadata") or {}
        batch = metadata.get("batch")
        usage = (batch["usage"] if batch else metadata.get("usage")) or {}
        total += usage.get("completion_tokens", 0) / (batch["size"] if batch else 1)
    return round(total)
