"""`PrometheusMetrics`: the project's metrics, under vLLM's names, in a registry of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Gauge
from prometheus_client import Histogram as LabelledHistogram
from prometheus_client.exposition import choose_encoder
from prometheus_client.process_collector import ProcessCollector

from vllm_mxext.observability.adapter_metrics import AdapterFigures, AdapterMetrics
from vllm_mxext.observability.download_metrics import DownloadFigures, DownloadMetrics
from vllm_mxext.observability.histogram import Histogram
from vllm_mxext.observability.stats import FinishedRequest, StepStats
from vllm_mxext.outputs import FinishReasonName

TTFT_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0,
                  40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
TOKEN_LATENCY_BUCKETS_S = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
                           20.0, 40.0, 80.0)  # fmt: skip
REQUEST_LATENCY_BUCKETS_S = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
                             240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
ITERATION_TOKENS_BUCKETS = (1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384)
NUM_SAMPLES_BUCKETS = (1, 2, 5, 10, 20)
HTTP_DURATION_BUCKETS_S = (0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)

FINISH_REASONS: tuple[FinishReasonName, ...] = get_args(FinishReasonName)

_LABELS = ("model_name", "engine")

_ALIASES = {
    "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
    "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
}
"""Names of today's vLLM and the names vLLM 0.6.6 had for the same figures; both are exported."""


def _names(name: str) -> list[str]:
    name = f"vllm:{name}"
    return [name, _ALIASES[name]] if name in _ALIASES else [name]


def token_count_buckets(largest: int) -> tuple[int, ...]:
    """Returns 1, 2, 5, 10, 20, 50, ... up to `largest`."""
    buckets = []
    power = 1
    while power <= largest:
        buckets += [power * step for step in (1, 2, 5) if power * step <= largest]
        power *= 10
    return tuple(buckets) or (1,)


class PrometheusMetrics:
    """Every metric of one server; a `StatsRecorder` for its engine and the HTTP layer's counters.

    Args:
        model_name: value of the label `model_name`.
        max_model_len: largest token count of a request, for bucket limits.
        engine: value of the label `engine`.
    """

    def __init__(self, model_name: str, max_model_len: int, *, engine: str = "0") -> None:
        self.registry = CollectorRegistry()
        self._labels = (model_name, engine)
        self._token_buckets = token_count_buckets(max_model_len)
        self._cache_info: Gauge | None = None
        self._last_step = StepStats()
        self._adapters: AdapterMetrics | None = None
        self._init_engine_state()
        self._init_request_figures()
        self._init_http()
        ProcessCollector(registry=self.registry)

    def _init_engine_state(self) -> None:
        self._gauge("num_requests_running", "Requests with KV blocks.", lambda step: step.num_running)
        self._gauge("num_requests_waiting", "Queued requests.", lambda step: step.num_waiting)
        self._gauge(
            "kv_cache_usage_perc", "Share of the KV cache in use; 1 is all of it.", lambda step: step.kv_cache_usage
        )
        self._prefix_queries = self._counter("prefix_cache_queries", "Prompt tokens looked up in the prefix cache.")
        self._prefix_hits = self._counter("prefix_cache_hits", "Prompt tokens found in the prefix cache.")
        self._preemptions = self._counter("num_preemptions", "Requests preempted by recompute.")
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of requests whose prompt is computed.")
        self._generation_tokens = self._counter("generation_tokens", "Output tokens.")
        self._drafts = self._counter("spec_decode_num_drafts", "Steps of a request with draft tokens.")
        self._draft_tokens = self._counter("spec_decode_num_draft_tokens", "Draft tokens.")
        self._accepted_tokens = self._counter("spec_decode_num_accepted_tokens", "Draft tokens that were accepted.")
        self._accepted_per_position = Counter(
            "vllm:spec_decode_num_accepted_tokens_per_pos", "Draft tokens that were accepted, by place in the draft.",
            (*_LABELS, "position"), registry=self.registry,
        )  # fmt: skip
        self._iteration_tokens = self._histogram(
            "iteration_tokens_total", "Tokens computed per engine step.", ITERATION_TOKENS_BUCKETS
        )
        self._rejections = Counter(
            "vllm:admission_rejections", "Requests not admitted.", (*_LABELS, "reason"), registry=self.registry
        )

    def _init_request_figures(self) -> None:
        latency, tokens = REQUEST_LATENCY_BUCKETS_S, self._token_buckets
        success = Counter(
            "vllm:request_success", "Finished samples.", (*_LABELS, "finished_reason"), registry=self.registry
        )
        self._success = {reason: success.labels(*self._labels, reason) for reason in FINISH_REASONS}
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.", TTFT_BUCKETS_S)
        self._itl = self._histogram("inter_token_latency_seconds", "Gap between tokens.", TOKEN_LATENCY_BUCKETS_S)
        self._tpot = self._histogram(
            "request_time_per_output_token_seconds", "Mean time per output token.", TOKEN_LATENCY_BUCKETS_S
        )
        self._e2e = self._histogram("e2e_request_latency_seconds", "Arrival to end.", latency)
        self._queue_time = self._histogram("request_queue_time_seconds", "Arrival to first scheduled.", latency)
        self._inference_time = self._histogram("request_inference_time_seconds", "First scheduled to end.", latency)
        self._prefill_time = self._histogram("request_prefill_time_seconds", "First scheduled to first token.", latency)
        self._decode_time = self._histogram("request_decode_time_seconds", "First token to end.", latency)
        self._request_prompt = self._histogram("request_prompt_tokens", "Prompt tokens per request.", tokens)
        self._request_output = self._histogram("request_generation_tokens", "Output tokens per sample.", tokens)
        self._request_longest = self._histogram(
            "request_max_num_generation_tokens", "Output tokens of a request's longest sample.", tokens
        )
        self._params_n = self._histogram("request_params_n", "The parameter n.", NUM_SAMPLES_BUCKETS)
        self._params_max_tokens = self._histogram("request_params_max_tokens", "The parameter max_tokens.", tokens)

    def _init_http(self) -> None:
        self._http_requests = Counter(
            "http_requests", "HTTP requests.", ("handler", "method", "status"), registry=self.registry
        )
        self._http_duration = LabelledHistogram(
            "http_request_duration_seconds", "Request line to the response's last byte.", ("handler", "method"),
            buckets=HTTP_DURATION_BUCKETS_S, registry=self.registry,
        )  # fmt: skip

    def _gauge(self, name: str, text: str, read: Callable[[StepStats], float]) -> None:
        """Adds a figure that is read off the last step whenever it is asked for."""
        for one in _names(name):
            gauge = Gauge(one, text, _LABELS, registry=self.registry)
            gauge.labels(*self._labels).set_function(lambda: read(self._last_step))

    def _counter(self, name: str, text: str) -> Counter:
        return Counter(f"vllm:{name}", text, _LABELS, registry=self.registry).labels(*self._labels)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...]) -> Histogram:
        histogram = Histogram(_names(name), text, dict(zip(_LABELS, self._labels, strict=True)), buckets)
        self.registry.register(histogram)
        return histogram

    def record_step(self, stats: StepStats) -> None:
        """Takes the figures of one engine step."""
        self._last_step = stats
        if stats.prefix_cache_queries:
            self._prefix_queries.inc(stats.prefix_cache_queries)
            self._prefix_hits.inc(stats.prefix_cache_hits)
        if stats.num_preempted:
            self._preemptions.inc(stats.num_preempted)
        if stats.num_drafts:
            self._drafts.inc(stats.num_drafts)
            self._draft_tokens.inc(stats.num_draft_tokens)
            self._accepted_tokens.inc(sum(stats.num_accepted_per_position))
            for position, count in enumerate(stats.num_accepted_per_position):
                self._accepted_per_position.labels(*self._labels, str(position)).inc(count)
        if stats.num_scheduled_tokens:
            self._iteration_tokens.observe(stats.num_scheduled_tokens)

    def record_first_token(self, num_prompt_tokens: int, ttft_s: float) -> None:
        """Takes the first output token of a request."""
        self._prompt_tokens.inc(num_prompt_tokens)
        self._generation_tokens.inc()
        self._ttft.observe(ttft_s)

    def record_next_tokens(self, num_tokens: int, gaps_s: Sequence[float]) -> None:
        """Takes the further output tokens of a step."""
        self._generation_tokens.inc(num_tokens)
        for gap_s in gaps_s:
            self._itl.observe(gap_s)

    def record_finished(self, request: FinishedRequest) -> None:
        """Takes a request at its end."""
        if request.adapter is not None and self._adapters is not None:
            self._adapters.record_finished(request)
        for reason in request.finish_reasons:
            self._success[reason].inc()
        self._request_prompt.observe(request.num_prompt_tokens)
        for num_tokens in request.num_generation_tokens:
            self._request_output.observe(num_tokens)
        longest = max(request.num_generation_tokens, default=0)
        self._request_longest.observe(longest)
        self._params_n.observe(len(request.finish_reasons))
        if request.max_tokens is not None:
            self._params_max_tokens.observe(request.max_tokens)
        self._observe_times(request, longest)

    def _observe_times(self, request: FinishedRequest, longest: int) -> None:
        times = request.metrics
        if times.finished_s is None:
            return
        self._e2e.observe(times.finished_s - times.arrival_s)
        if times.first_scheduled_s is None:
            return
        self._queue_time.observe(times.first_scheduled_s - times.arrival_s)
        self._inference_time.observe(times.finished_s - times.first_scheduled_s)
        if times.first_token_s is None:
            return
        self._prefill_time.observe(times.first_token_s - times.first_scheduled_s)
        decode_s = times.finished_s - times.first_token_s
        self._decode_time.observe(decode_s)
        if longest > 1:
            self._tpot.observe(decode_s / (longest - 1))

    def record_rejection(self, reason: str) -> None:
        """Takes a request that was not admitted."""
        self._rejections.labels(*self._labels, reason).inc()

    def record_cache_config(self, settings: Mapping[str, str | int | float | bool | None]) -> None:
        """Takes the settings of the KV cache; the last ones become the labels of `vllm:cache_config_info`."""
        if self._cache_info is not None:
            self.registry.unregister(self._cache_info)
        info = Gauge(
            "vllm:cache_config_info", "Settings of the KV cache.", ("engine", *settings), registry=self.registry
        )
        self._cache_info = info
        info.labels(self._labels[1], *(str(value) for value in settings.values())).set(1)

    def watch_adapters(self, max_loras: int, read: Callable[[], Sequence[AdapterFigures]]) -> None:
        """Shows the figures of LoRA adapters from now on; `read` is asked for them whenever somebody looks."""
        self._adapters = AdapterMetrics(dict(zip(_LABELS, self._labels, strict=True)), max_loras, read)
        self.registry.register(self._adapters)

    def watch_download(self, read: Callable[[], DownloadFigures | None]) -> None:
        """Shows the figures of the model's download from now on; `read` is asked for them whenever somebody looks."""
        self.registry.register(DownloadMetrics(read))

    def record_http(self, handler: str, method: str, status: int, duration_s: float) -> None:
        """Takes one HTTP exchange.

        Args:
            handler: the route's path template, so that the number of label values is bounded.
            method: HTTP method.
            status: status sent, or 499 when the client went away first.
            duration_s: seconds from the request line to the last byte of the response.
        """
        self._http_requests.labels(handler, method, str(status)).inc()
        self._http_duration.labels(handler, method).observe(duration_s)

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Returns the figures as text and its content type, in the format that the `Accept` header asks for."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type
