"""The documented functions that take a server's address, against our own server."""

from __future__ import annotations

import json
import shlex
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest

from tests.api.server_thread import ServerThread
from vllm_mxext.client import handlers
from vllm_mxext.client.errors import BadRequestError, ConnectionFailedError, NotFoundError
from vllm_mxext.client.optimization import SERVER_FLAGS, optimize_model
from vllm_mxext.config.sources import read_command_line
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-11")


class CountingServer:
    """A server of one model that counts requests at once and prompts of one request."""

    def __init__(self, owner: str = "vllm_mxext") -> None:
        counts = self
        self._changed = threading.Condition()
        self._num_now = 0
        self.expect(1)

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            wbufsize = -1  # one packet for an answer

            def log_message(self, *words: object) -> None:
                """Says nothing."""

            def do_GET(self) -> None:
                self.answer({"data": [{"id": "m", "owned_by": owner}]})

            def do_POST(self) -> None:
                prompts = json.loads(self.rfile.read(int(self.headers["content-length"])))["prompt"]
                prompts = prompts if isinstance(prompts, list) else [prompts]
                with counts.one_more(len(prompts)):
                    choices = [
                        {"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(prompts)
                    ]
                    self.answer({"model": "m", "choices": choices})

            def answer(self, content: dict[str, Any]) -> None:
                data = json.dumps(content).encode()
                self.send_response(200)
                self.send_header("content-type", "application/json")
                self.send_header("content-length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)

    def __enter__(self) -> CountingServer:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        handlers.client_of(self.url).close()
        self._server.shutdown()
        self._server.server_close()

    def expect(self, at_once: int) -> None:
        """Counts anew; nobody is answered before so many requests have been there at once."""
        self.most_at_once = self.largest_batch = 0
        self._expected = at_once

    @contextmanager
    def one_more(self, num_prompts: int) -> Iterator[None]:
        with self._changed:
            self._num_now += 1
            self.most_at_once = max(self.most_at_once, self._num_now)
            self.largest_batch = max(self.largest_batch, num_prompts)
            self._changed.notify_all()
            assert self._changed.wait_for(lambda: self.most_at_once >= self._expected, timeout=60)
        yield
        with self._changed:
            self._num_now -= 1


PROMPTS = ["Tell me about Python", "Explain machine learning", "What is deep learning?"]


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread() as server:
        yield server


def test_a_handler_answers_for_its_model(server: ServerThread) -> None:
    handler = handlers.create_vllm_endpoint_handler(server.url, "fake-model")
    assert handler("ab")["text"] == "ab"
    with pytest.raises(NotFoundError):
        handlers.create_vllm_endpoint_handler(server.url, "nope")("ab")


def test_parameters_of_a_handler_and_of_a_request_reach_the_engine(server: ServerThread) -> None:
    handler = handlers.create_vllm_endpoint_handler_with_params(
        server.url, model="fake-model", parameters={"temperature": 0.7}
    )
    handlers.format_request_with_params(handler, "ab", {"max_tokens": 1})
    params = server.engine.requests[-1].params
    assert (params.temperature, params.max_tokens) == (0.7, 1)
    handlers.format_request_with_params(handler, "ab", {"temperature": 0.2})
    assert server.engine.requests[-1].params.temperature == 0.2


def test_settings_of_the_client_are_no_fields_of_its_requests(server: ServerThread) -> None:
    handler = handlers.create_vllm_endpoint_handler_with_params(server.url, parameters={"batch_size": 2, "timeout": 9})
    with handler.client as client:
        assert (client.max_batch_size, client.settings.timeout) == (2, 9)
        assert [one["metadata"].get("batch", {}).get("size") for one in handler(PROMPTS)] == [2, 2, None]
    assert handlers.client_of(server.url).max_batch_size == 8


def test_a_structured_request_has_its_context_first(server: ServerThread) -> None:
    handler = handlers.create_vllm_endpoint_handler(server.url)
    request = {"prompt": "ML?", "context": "I'm a beginner", "options": {"return_logprobs": True, "max_tokens": 3}}
    result = handlers.format_structured_request(handler, request)
    sent = server.engine.requests[-1]
    assert sent.prompt.text == "I'm a beginner\n\nML?"
    assert len(result["logprobs"]["tokens"]) == result["metadata"]["usage"]["completion_tokens"] == 3
    assert "logprobs" not in handlers.format_structured_request(handler, {"prompt": "ab"})
    for wrong, words in (({"prompt": ""}, "needs a prompt"), ({"prompt": "a", "ctx": ""}, "no 'ctx'")):
        with pytest.raises(BadRequestError, match=words):
            handlers.format_structured_request(handler, wrong)


def test_batches_are_answered_in_order_with_parameters_and_figures(server: ServerThread) -> None:
    texts = [one["text"] for one in handlers.process_batch(server.url, PROMPTS, "fake-model")]
    assert all(text and prompt.startswith(text) for text, prompt in zip(texts, PROMPTS, strict=True))
    short = handlers.process_batch_with_params(server.url, PROMPTS, "fake-model", {"max_tokens": 2})
    assert [one["metadata"]["finish_reason"] for one in short] == ["length"] * 3

    results, metrics = handlers.process_batch_with_metrics(server.url, PROMPTS, "fake-model", {"max_tokens": 2})
    assert len(results) == metrics["num_inputs"] == 3
    assert (metrics["num_failed"], metrics["output_tokens"]) == (0, 6)
    assert metrics["inputs_per_second"] == pytest.approx(3 / metrics["duration_s"])


def test_one_failure_of_a_batch_is_told_and_all_are_raised(server: ServerThread) -> None:
    results, metrics = handlers.process_batch_with_metrics(server.url, ["ab", "x" * 5000])
    assert (results[0]["text"], results[1]["text"], metrics["num_failed"]) == ("ab", None, 1)
    assert (results[1]["error"]["type"], results[1]["error"]["status"]) == ("BadRequestError", 400)
    with pytest.raises(BadRequestError):
        handlers.process_batch(server.url, ["x" * 5000] * 2)


def test_what_is_no_batch_and_no_structure_is_refused(server: ServerThread) -> None:
    handler = handlers.create_vllm_endpoint_handler(server.url)
    refused: list[Callable[[], object]] = [
        lambda: handlers.process_batch(server.url, "abc"),
        lambda: handlers.process_batch(server.url, cast(Any, None)),
        lambda: handlers.process_batch_with_metrics(server.url, cast(Any, [1, None])),
        lambda: handlers.process_batch_with_params(server.url, ["a"], parameters=cast(Any, "temperature")),
        lambda: handlers.format_structured_request(handler, cast(Any, None)),
        lambda: handlers.format_structured_request(handler, {"prompt": "a", "options": "x"}),
        lambda: handlers.format_request_with_params(handler, cast(Any, None), {}),
    ]
    asked = len(server.engine.requests)
    for ask in refused:
        with pytest.raises(BadRequestError):
            ask()
    assert len(server.engine.requests) == asked
    assert handlers.process_batch_with_metrics(server.url, [])[0] == []


def test_a_client_that_somebody_closed_is_made_anew(server: ServerThread) -> None:
    with handlers.create_vllm_endpoint_handler(server.url).client:
        pass
    assert handlers.create_vllm_endpoint_handler(server.url)("ab")["text"] == "ab"


def test_information_and_figures_are_the_servers(server: ServerThread) -> None:
    info = handlers.get_model_info(server.url, "fake-model")
    assert info["max_model_len"] == server.engine.model.max_model_len
    handlers.process_batch(server.url, ["ab"], "fake-model")
    statistics = handlers.get_model_statistics(server.url, "fake-model")
    assert statistics["client"]["fake-model"]["requests"]["succeeded"] > 0
    assert any(name.startswith("vllm:") for name in statistics["server"])
    assert not any("_bucket" in name for name in statistics["server"])
    assert handlers.get_model_statistics(server.url)["model"] == "fake-model"
    with pytest.raises(NotFoundError):
        handlers.get_model_info(server.url, "nope")


@pytest.mark.parametrize("kind", ["speed", "memory", "balanced"])
def test_an_optimization_says_what_it_did_and_what_only_a_start_can_do(server: ServerThread, kind: str) -> None:
    result = optimize_model(server.url, "fake-model", optimization_type=kind)
    client = handlers.client_of(server.url)
    assert result["applied"] == {name: getattr(client, name) for name in result["applied"]}
    assert result["applied"]["max_concurrent_requests"] == client.get_stats("main")["limit"]
    assert [one["flag"] for one in result["not_applied"]] == [one.flag for one in SERVER_FLAGS["vllm_mxext"][kind]]


def test_an_optimization_is_felt_by_the_server() -> None:
    with CountingServer() as server, ThreadPoolExecutor(12) as pool:
        for kind, at_once, largest in (("balanced", 2, 8), ("memory", 2, 1), ("speed", 1, 12)):
            optimize_model(server.url, optimization_type=kind)
            server.expect(at_once)
            handler = handlers.create_vllm_endpoint_handler(server.url)
            assert len(list(pool.map(handler, [f"p{number}" for number in range(24)]))) == 24
            assert kind != "memory" or server.most_at_once == 2
            handlers.process_batch(server.url, [f"p{number}" for number in range(12)])
            assert server.largest_batch == largest


@pytest.mark.parametrize(("owner", "flags"), [("vllm", ["--quantization fp8"]), ("llamacpp", None)])
def test_flags_are_those_of_the_server_that_is_there(owner: str, flags: list[str] | None) -> None:
    with CountingServer(owner) as server:
        report = optimize_model(server.url, optimization_type="speed")
    assert report["applied"]["max_concurrent_requests"] == 64
    assert report["not_applied"] == flags or [one["flag"] for one in report["not_applied"]] == flags


def test_an_unknown_optimization_or_model_changes_nothing(server: ServerThread) -> None:
    before = optimize_model(server.url, optimization_type="balanced")["applied"]
    with pytest.raises(ConfigError, match="speed, memory, balanced"):
        optimize_model(server.url, optimization_type="turbo")
    with pytest.raises(NotFoundError):
        optimize_model(server.url, "nope", optimization_type="speed")
    client = handlers.client_of(server.url)
    assert before == {name: getattr(client, name) for name in before}


@pytest.mark.parametrize("kind", SERVER_FLAGS["vllm_mxext"])
def test_the_flags_that_are_named_exist(kind: str) -> None:
    flags = SERVER_FLAGS["vllm_mxext"][kind]
    settings, _ = read_command_line(shlex.split(" ".join(one.flag for one in flags)), "serve")
    assert len(settings) == len(flags)


def test_a_server_that_is_not_there_is_an_error_not_a_pretence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MAX_RETRIES", "0")
    for ask in (handlers.get_model_info, handlers.get_model_statistics, optimize_model):
        with pytest.raises(ConnectionFailedError):
            ask("http://127.0.0.1:9")
