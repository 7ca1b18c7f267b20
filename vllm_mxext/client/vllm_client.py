"""`VllmClient`: the resilient client for synchronous programs, with the documented names.

with VllmClient(base_url="http://127.0.0.1:8000") as client:
    result = client.run_inference("default", "What is machine learning?", {"max_tokens": 100}, priority=0)
    print(result["text"], client.get_metrics()["latency"]["e2e_s"]["p95"])
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from types import TracebackType
from typing import Any, NoReturn, TypeVar

from vllm_mxext.client.async_client import AsyncVllmClient
from vllm_mxext.client.breaker import CLOSED, HALF_OPEN, OPEN
from vllm_mxext.client.call import NORMAL
from vllm_mxext.client.errors import ClientError
from vllm_mxext.client.inference import Inputs
from vllm_mxext.client.limiter import LimiterConfig
from vllm_mxext.client.metrics import CallRecord
from vllm_mxext.client.namespaces import CallOptions, Requests
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.client.router import Endpoint
from vllm_mxext.client.server_calls import MAIN, ServerCalls
from vllm_mxext.client.settings import ClientSettings
from vllm_mxext.client.sharing import BatchSettings
from vllm_mxext.client.sync_face import SyncFace
from vllm_mxext.client.sync_namespaces import SyncChat, SyncCompletions, SyncEmbeddings, SyncModels
from vllm_mxext.errors import ConfigError

T = TypeVar("T")

_OF_ENDPOINTS = ("api_key", "base_url", "timeout", "max_retries", "max_concurrent_requests", "failure_threshold")


class RequestQueue:
    """The waiting calls, as a length: `len(client.request_queue)`.

    Args:
        pipeline: the owner of the queue.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self._pipeline = pipeline

    def __len__(self) -> int:
        return self._pipeline.num_queued


class VllmClient(ServerCalls):
    """A client of one or more servers with OpenAI's API that survives their failures; a thread-safe context manager.

    Args:
        api_key: presented to the server; `$VLLM_API_KEY` by default.
        base_url: the server's URL, with or without `/v1`; `$VLLM_API_URL` by default, else port 8000 of this machine.
        settings: the others of `ClientSettings`: `model`, `timeout`, `max_retries`, `retry_delay`, `backoff_factor`,
            `max_concurrent_requests`, `failure_threshold`, `reset_timeout`, `fallbacks`, `hedge_after`, `retry_budget`,
            `queue_enabled`, `queue_size`, `batch_enabled`, `max_batch_size`, `batch_timeout`. Settings that are not
            given are taken from environment variables.

    Attributes:
        settings: the settings that it was created with.
        chat: `chat.completions.create()`, as OpenAI's client has it.
        completions: `completions.create()`.
        embeddings: `embeddings.create()`.
        models: `models.list()`, `models.retrieve()`.
        request_queue: the waiting calls; has a length.

    Raises:
        ConfigError: a setting is unknown or invalid.
    """

    def __init__(self, api_key: str | None = None, base_url: str | None = None, **settings: Any) -> None:
        self.settings = read = ClientSettings.read({"api_key": api_key, "base_url": base_url, **settings})
        self._batches = BatchSettings(read.batch_enabled, read.max_batch_size, read.batch_timeout)
        self._pipeline = pipeline = Pipeline(read.endpoints(MAIN), read.pipeline())
        self._options: dict[str, dict[str, Any]] = {}
        self._is_closed = False
        self.request_queue = RequestQueue(pipeline)
        client = AsyncVllmClient.over(pipeline, batches=self._batches)
        self._inference = client.inference
        face = SyncFace(client.close)
        super().__init__(face, pipeline, Requests(pipeline, CallOptions()), read.model)
        self.chat = SyncChat(face, client.chat)
        self.completions = SyncCompletions(face, client.completions)
        self.embeddings = SyncEmbeddings(face, client.embeddings)
        self.models = SyncModels(face, client.models)

    def __enter__(self) -> VllmClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError("A client has connections, which cannot be copied or pickled; make one in each process.")

    @property
    def is_closed(self) -> bool:
        """Whether `close()` was called."""
        return self._is_closed

    def close(self) -> None:
        """Closes the connections; calls under way end with `ClosedError`. May be called again."""
        self._is_closed = True
        self._face.close()

    # --- asking ---

    def run_inference(
        self,
        model_id: str | None = None,
        inputs: Inputs = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Any:
        """Returns `{"text", "metadata": {"finish_reason", "model", "usage"}}`; for several prompts, a list of them.

        While `batch_enabled`, prompts of concurrent calls with equal parameters are sent as one request; `usage` is
        then known only for all of them together, and is in `metadata["batch"]`.

        Args:
            model_id: name of the model; `default` = whichever the server serves.
            inputs: a prompt, a list of prompts, or a conversation.
            parameters: fields of the request: `temperature`, `max_tokens`, …, and options: `timeout`, `max_retries`, ….
            priority: 0 high, 1 normal, 2 low; one in the parameters takes precedence.

        Raises:
            ConfigError: an option is out of range.
            ClientError: there is no answer; its class says why.
        """
        return self._run(model_id, inputs, parameters, {"priority": priority})

    def run_each(
        self, model_id: str | None, prompts: Sequence[str], parameters: Mapping[str, Any] | None = None
    ) -> list[Any]:
        """Returns a result or an error (an exception, not raised) for each prompt, in their order."""
        model = model_id or self.settings.model
        return self._face.run(self._inference.run_all(model, prompts, parameters or {}, {}))

    def stream_generation(
        self,
        model_id: str | None = None,
        inputs: Inputs = "",
        parameters: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Generator[str, None, None]:
        """Yields the answer's text as it arrives; see `run_inference()`.

        Raises:
            StreamInterruptedError: it broke off; `text` is what was received.
            ClientError: it did not begin.
        """
        model = model_id or self.settings.model
        return self._face.iterate(self._inference.stream(model, inputs, parameters or {}, {"priority": priority}))

    # --- endpoints ---

    def create_endpoint(self, *, shares_load: bool = False, **settings: Any) -> str:
        """Adds an endpoint and returns its id for `make_request_with_endpoint()` and `get_stats()`.

        Args:
            shares_load: whether calls that name no endpoint can go to it too, not only those that name it.
            settings: `api_key`, `base_url`, `timeout`, `max_retries`, `max_concurrent_requests`, `failure_threshold`;
                the client's by default.

        Raises:
            ConfigError: a setting is unknown or invalid.
        """
        foreign = next((name for name in settings if name not in _OF_ENDPOINTS), None)
        if foreign is not None:
            raise ConfigError(f"An endpoint has no setting '{foreign}'; it has {', '.join(_OF_ENDPOINTS)}.")
        own = {name: getattr(self.settings, name) for name in ClientSettings.__dataclass_fields__}
        read = ClientSettings.read({**own, **{name: one for name, one in settings.items() if one is not None}})

        def add() -> str:
            endpoint_id = f"endpoint-{len(self._pipeline.endpoints)}"
            endpoint = read.endpoint(endpoint_id)
            endpoint.is_by_name = not shares_load
            timeouts = read.pipeline().timeouts
            self._options[endpoint_id] = {
                "endpoint_id": endpoint_id,
                "max_retries": read.max_retries,
                "timeout": timeouts,
            }
            self._pipeline.endpoints.append(endpoint)
            return endpoint_id

        return self._on_loop(add)

    def make_request_with_endpoint(
        self,
        endpoint_id: str,
        data: Inputs,
        model: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        priority: int = NORMAL,
    ) -> Any:
        """Does what `run_inference()` does, at one endpoint only.

        Raises:
            ClientError: there is no such endpoint, or no answer.
        """
        options = self._options.get(endpoint_id, {"endpoint_id": str(endpoint_id)})  # None would be any
        return self._run(model, data, parameters, {**options, "priority": priority})

    def get_stats(self, endpoint_id: str | None = None) -> dict[str, Any]:
        """Returns the state and figures of one endpoint, or of all by id.

        Raises:
            ClientError: there is no such endpoint.
        """
        measured = self._pipeline.metrics.snapshot()["endpoints"]
        stats = {one.id: {**_state(one), **measured.get(one.id, {})} for one in self._pipeline.endpoints}
        if endpoint_id is None:
            return stats
        if endpoint_id not in stats:
            raise ClientError(f"There is no endpoint '{endpoint_id}'; those known are {', '.join(stats)}.")
        return stats[endpoint_id]

    # --- state ---

    def get_metrics(self, reset: bool = False) -> dict[str, Any]:
        """Returns the metrics of all calls; `reset` sets them to zero in the same step."""
        return {
            **self._pipeline.metrics.snapshot(reset=reset),
            "circuit": {"state": self.circuit_state, "failure_count": self.failure_count},
            "queue": {
                "enabled": self.queue_enabled,
                "waiting": len(self.request_queue),
                "under_way": self.current_requests,
            },
        }

    def prometheus(self) -> str:
        """Returns the figures in Prometheus' text format."""
        return self._pipeline.metrics.prometheus()

    @property
    def circuit_state(self) -> str:
        """`CLOSED` if any load-sharing endpoint's circuit is, else `HALF-OPEN` or `OPEN`; setting it sets all."""
        states = {one.breaker.state for one in self._pipeline.endpoints if not one.is_by_name}
        return next(state for state in (CLOSED, HALF_OPEN, OPEN) if state in states)

    @circuit_state.setter
    def circuit_state(self, state: str) -> None:
        def change() -> None:
            for endpoint in self._pipeline.endpoints:
                endpoint.breaker.state = state

        self._on_loop(change)

    @property
    def failure_count(self) -> int:
        """Largest number of failures since the last success among the load-sharing endpoints."""
        return max(one.breaker.failure_count for one in self._pipeline.endpoints if not one.is_by_name)

    @property
    def queue_enabled(self) -> bool:
        """Whether calls wait while `max_concurrent_requests` are under way; if not, they are refused. Can be set."""
        return self._pipeline.max_queue > 0

    @queue_enabled.setter
    def queue_enabled(self, is_enabled: bool) -> None:
        read = ClientSettings.read({"queue_enabled": is_enabled})
        self._pipeline.max_queue = self.settings.queue_size if read.queue_enabled else 0

    @property
    def current_requests(self) -> int:
        """Attempts under way."""
        return self._pipeline.num_running

    @property
    def recent_requests(self) -> list[CallRecord]:
        """Records of the latest calls, oldest first; without prompts and answers."""
        return self._pipeline.metrics.recent

    @property
    def max_concurrent_requests(self) -> int:
        """The current limit of concurrent calls at the server; setting it sets all endpoints'."""
        return self._pipeline.endpoints[0].limiter.limit

    @max_concurrent_requests.setter
    def max_concurrent_requests(self, number: int) -> None:
        read = ClientSettings.read({"max_concurrent_requests": number})
        config = LimiterConfig(max_limit=read.max_concurrent_requests)

        def change() -> None:
            for endpoint in self._pipeline.endpoints:
                endpoint.limiter.change(config)

        self._on_loop(change)

    @property
    def batch_enabled(self) -> bool:
        """Whether prompts, and texts to embed, of concurrent calls are sent as one request. Can be set."""
        return self._batches.is_enabled

    @batch_enabled.setter
    def batch_enabled(self, is_enabled: bool) -> None:
        self._batches.is_enabled = ClientSettings.read({"batch_enabled": is_enabled}).batch_enabled

    @property
    def max_batch_size(self) -> int:
        """Most of them in one such request. Can be set."""
        return self._batches.max_size

    @max_batch_size.setter
    def max_batch_size(self, size: int) -> None:
        self._batches.max_size = ClientSettings.read({"max_batch_size": size}).max_batch_size

    @property
    def batch_timeout(self) -> float:
        """Seconds that the first of them waits for others. Can be set."""
        return self._batches.timeout_s

    @batch_timeout.setter
    def batch_timeout(self, seconds: float) -> None:
        self._batches.timeout_s = ClientSettings.read({"batch_timeout": seconds}).batch_timeout

    def _run(
        self, model: str | None, inputs: Inputs, parameters: Mapping[str, Any] | None, options: Mapping[str, Any]
    ) -> Any:
        return self._face.run(self._inference.run(model or self.settings.model, inputs, parameters or {}, options))

    def _on_loop(self, change: Callable[[], T]) -> T:
        async def run() -> T:
            return change()

        return self._face.run(run())


def _state(endpoint: Endpoint) -> dict[str, Any]:
    return {
        "id": endpoint.id,
        "circuit_state": endpoint.breaker.state,
        "failure_count": endpoint.breaker.failure_count,
        "current_requests": endpoint.limiter.in_flight,
        "limit": endpoint.limiter.limit,
    }
