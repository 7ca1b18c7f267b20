"""`VllmClient` and `VllmMxextClient` against our own server: the names of the documents, and what they do."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.api.server_thread import ServerThread
from vllm_mxext.client.errors import (
    BadRequestError,
    CircuitOpenError,
    ClientError,
    ClosedError,
    ConnectionFailedError,
    NotFoundError,
)
from vllm_mxext.client.sdk import VllmMxextClient
from vllm_mxext.client.vllm_client import VllmClient
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-10")

NOBODY = "http://127.0.0.1:9"


@pytest.fixture(scope="module")
def server() -> Iterator[ServerThread]:
    with ServerThread() as server:
        yield server


@pytest.fixture
def client(server: ServerThread) -> Iterator[VllmClient]:
    with VllmClient(base_url=server.url, max_retries=0, timeout=300) as client:
        yield client


def test_a_prompt_gets_a_text_and_its_metadata(client: VllmClient) -> None:
    result = client.run_inference("fake-model", "ab", {"temperature": 0.7, "max_tokens": 100}, priority=0)
    assert (result["text"], result["metadata"]["finish_reason"]) == ("ab", "stop")
    assert result["metadata"]["model"] == "fake-model"
    assert result["metadata"]["usage"]["total_tokens"] > 0
    assert list(client.get_metrics()["priorities"]) == ["0"]


def test_default_means_whatever_is_served(client: VllmClient) -> None:
    assert client.run_inference("default", "ab")["metadata"]["model"] == "fake-model"
    assert client.run_inference(inputs="ab")["metadata"]["model"] == "fake-model"
    assert client.get_model()["id"] == "fake-model"


def test_a_conversation_is_chatted(client: VllmClient) -> None:
    assert "hi" in client.run_inference("default", [{"role": "user", "content": "hi"}])["text"]


def test_a_list_of_prompts_is_sent_in_batches_and_answered_in_order(client: VllmClient) -> None:
    client.max_batch_size = 2
    results = client.run_inference("default", ["ab", "cd", "ef"])
    assert [one["text"] for one in results] == ["ab", "cd", "ef"]
    assert [one["metadata"].get("batch", {}).get("size") for one in results] == [2, 2, None]
    assert client.get_metrics()["requests"]["total"] == 2


def test_without_batching_every_prompt_is_a_request(client: VllmClient) -> None:
    client.batch_enabled = False
    assert [one["metadata"]["usage"] is None for one in client.run_inference("default", ["ab", "cd"])] == [False] * 2
    assert client.get_metrics()["requests"]["total"] == 2


def test_one_wrong_prompt_of_a_batch_harms_no_other(client: VllmClient) -> None:
    results = client.run_each("default", ["ab", "x" * 5000, "cd"])
    assert (results[0]["text"], results[2]["text"]) == ("ab", "cd")
    assert isinstance(results[1], BadRequestError)
    with pytest.raises(BadRequestError):
        client.run_inference("default", ["ab", "x" * 5000])


def test_calls_of_many_threads_are_all_answered(client: VllmClient) -> None:
    client.batch_timeout = 0.01
    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(lambda number: client.run_inference("default", f"p{number}"), range(24)))
    assert [one["text"] for one in results] == [f"p{number}" for number in range(24)]
    assert client.current_requests == len(client.request_queue) == 0


def test_a_stream_brings_the_text_in_pieces(client: VllmClient) -> None:
    assert "".join(client.stream_generation("default", "abcd")) == "abcd"
    assert "".join(client.stream_generation("default", [{"role": "user", "content": "hi"}]))
    with pytest.raises(BadRequestError):
        list(client.stream_generation("default", ["a", "b"]))


def test_the_namespaces_of_openai_are_there(client: VllmClient) -> None:
    answer = client.chat.completions.create(model="fake-model", messages=[{"role": "user", "content": "hi"}])
    with client.completions.create(prompt="ab", stream=True) as stream:
        texts = [chunk.choices[0].text for chunk in stream]
    assert answer.choices[0].message.content
    assert "".join(texts) == stream.text == "ab"
    assert client.models.list().data[0].id == client.models.retrieve("fake-model").id == "fake-model"


def test_a_streamed_answer_says_where_it_came_from_and_ends_before_its_first_chunk_too(client: VllmClient) -> None:
    with client.completions.create(prompt="ab", stream=True) as stream:
        assert stream.request_id
        assert (stream.endpoint_id, client.current_requests) == ("main", 1)
    assert client.current_requests == 0
    assert list(stream) == []
    stream.close()


def test_what_a_call_cannot_be_asked_for_is_refused(client: VllmClient) -> None:
    for priority in (None, "0", 1.5, -1):
        with pytest.raises(ConfigError, match="priority"):
            client.run_inference("default", "ab", priority=priority)  # type: ignore[arg-type]
    with pytest.raises(BadRequestError, match="list of texts"):
        client.run_each("default", "abc")
    assert client.run_inference("default", "ab", {"priority": 2})["text"] == "ab"
    assert client.recent_requests[-1].priority == 2


def test_a_client_is_neither_copied_nor_pickled(client: VllmClient) -> None:
    for duplicate in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="one in each process"):
            duplicate(client)


def test_errors_are_typed(client: VllmClient) -> None:
    with pytest.raises(NotFoundError) as caught:
        client.run_inference("nope", "ab")
    assert caught.value.status == 404
    assert client.failure_count == 0
    assert [one.outcome for one in client.recent_requests] == ["NotFoundError"]
    with pytest.raises(BadRequestError, match="prompt or messages"):
        client.run_inference("default", {"prompt": "a", "messages": []})
    with pytest.raises(ConfigError, match="priority"):
        client.run_inference("default", "ab", priority=7)


def test_the_circuit_opens_is_seen_and_can_be_closed_by_hand() -> None:
    with VllmClient(base_url=NOBODY, max_retries=0, failure_threshold=2) as client:
        for _ in range(2):
            with pytest.raises(ConnectionFailedError):
                client.run_inference("default", "ab")
        assert (client.circuit_state, client.failure_count) == ("OPEN", 2)
        with pytest.raises(CircuitOpenError):
            client.run_inference("default", "ab")
        assert client.get_metrics()["circuit"] == {"state": "OPEN", "failure_count": 2}
        client.circuit_state = "CLOSED"
        assert (client.circuit_state, client.failure_count) == ("CLOSED", 0)
        with pytest.raises(ConfigError, match="HALF-OPEN"):
            client.circuit_state = "open"


def test_metrics_can_be_read_and_begun_anew(client: VllmClient) -> None:
    client.run_inference("default", "ab")
    assert client.get_metrics(reset=True)["requests"]["succeeded"] == 1
    assert client.get_metrics()["requests"]["total"] == 0
    assert client.recent_requests == []
    assert "vllm_mxext_client_requests" in client.prometheus()


def test_endpoints_have_settings_and_figures_of_their_own(client: VllmClient, server: ServerThread) -> None:
    first = client.create_endpoint(api_key="key1", max_concurrent_requests=5, max_retries=3)
    dead = client.create_endpoint(base_url=NOBODY, max_retries=0)
    assert client.make_request_with_endpoint(endpoint_id=first, data="ab", model="fake-model")["text"] == "ab"
    with pytest.raises(ConnectionFailedError):
        client.make_request_with_endpoint(dead, "ab")

    stats = client.get_stats()
    assert {name: one.get("requests", {}).get("total") for name, one in stats.items()} == {
        "main": None,
        first: 1,
        dead: 1,
    }
    assert client.get_stats(endpoint_id=first)["limit"] == 5
    assert client.circuit_state == "CLOSED"
    for wrong in (lambda: client.get_stats("x"), lambda: client.make_request_with_endpoint("x", "ab")):
        with pytest.raises(ClientError, match="no endpoint 'x'"):
            wrong()
    with pytest.raises(ConfigError, match="no setting 'model'"):
        client.create_endpoint(model="m")


def test_endpoints_that_are_made_at_the_same_time_have_their_own_names(client: VllmClient) -> None:
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda _: client.create_endpoint(), range(40)))
    assert len(set(names)) == 40
    assert client.get_stats().keys() == {"main", *names}


def test_an_endpoint_takes_from_the_client_what_it_is_not_given(server: ServerThread) -> None:
    with VllmClient("secret", NOBODY, timeout=7, failure_threshold=1, max_retries=0) as client:
        name = client.create_endpoint(api_key=None, base_url=None)
        assert [(one.url, one.api_key) for one in client._pipeline.endpoints] == [(NOBODY, "secret")] * 2
        with pytest.raises(ConnectionFailedError):
            client.make_request_with_endpoint(name, "ab")
        assert client.get_stats(name)["failure_count"] == 1
        assert (client.circuit_state, client.failure_count) == ("CLOSED", 0)
        with pytest.raises(ConfigError, match="address"):
            client.create_endpoint(base_url="127.0.0.1", shares_load=True)


def test_an_endpoint_that_shares_the_load_takes_over(server: ServerThread) -> None:
    with VllmClient(base_url=NOBODY, max_retries=2, retry_delay=0) as client:
        spare = client.create_endpoint(base_url=server.url)
        with pytest.raises(ClientError):
            client.run_inference("default", "ab")
        shared = client.create_endpoint(base_url=server.url, shares_load=True)
        client.circuit_state = "CLOSED"
        assert client.run_inference("default", "ab")["text"] == "ab"
        assert "requests" in client.get_stats(shared)
        assert "requests" not in client.get_stats(spare)


def test_without_a_queue_nobody_waits(client: VllmClient) -> None:
    assert client.queue_enabled
    client.queue_enabled = False
    assert not client.queue_enabled
    assert client.run_inference("default", "ab")["text"] == "ab"
    client.queue_enabled = True
    assert client.get_metrics()["queue"] == {"enabled": True, "waiting": 0, "under_way": 0}


def test_bounds_can_be_changed_later(client: VllmClient) -> None:
    client.max_concurrent_requests = 3
    assert client.max_concurrent_requests == client.get_stats("main")["limit"] == 3
    for name, value in (
        ("max_batch_size", 0),
        ("batch_timeout", -1),
        ("max_concurrent_requests", 0),
        ("max_concurrent_requests", "many"),
        ("batch_enabled", "no"),
        ("queue_enabled", 0),
    ):
        with pytest.raises(ConfigError, match=name):
            setattr(client, name, value)


def test_adapters_are_loaded_used_listed_and_unloaded(server: ServerThread, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"r": 8}')
    with VllmMxextClient(server.url) as client:
        assert "added" in client.load_lora("math_tuned", str(tmp_path))["message"]
        result = client.chat_with_lora("math_tuned", [{"role": "user", "content": "Solve: 2x + 5 = 13"}])
        assert result["choices"][0]["message"]["content"]
        assert server.engine.requests[-1].params.max_tokens == 150
        assert [one["name"] for one in client.list_loras()] == ["math_tuned"]
        assert "removed" in client.unload_lora("math_tuned")["message"]
        with pytest.raises(NotFoundError):
            client.chat_with_lora("math_tuned", [{"role": "user", "content": "x"}])


def test_a_closed_client_says_so(client: VllmClient) -> None:
    client.run_inference("default", "ab")
    client.close()
    client.close()
    with pytest.raises(ClosedError):
        client.run_inference("default", "ab")


def test_a_namespace_keeps_its_client_going(server: ServerThread) -> None:
    chat = VllmClient(base_url=server.url).chat
    assert chat.completions.create(messages=[{"role": "user", "content": "hi"}]).choices[0].message.content
