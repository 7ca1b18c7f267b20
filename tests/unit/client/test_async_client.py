"""`AsyncVllmClient`: namespaces, the calls of `VllmClient`, options, several servers."""

from __future__ import annotations

import asyncio
import json
import pickle
from typing import Any

import pytest

from tests.client.endpoints import closed_port
from tests.client.fault_server import WORDS, FaultServer, body, completion, healthy, never_answer, status
from vllm_mxext.client.async_client import AsyncVllmClient
from vllm_mxext.client.breaker import BreakerConfig
from vllm_mxext.client.call import HIGH, LOW, NORMAL, Timeouts
from vllm_mxext.client.document import Document
from vllm_mxext.client.errors import (
    BadRequestError,
    ClientError,
    NotFoundError,
    ProtocolError,
    ServerError,
    TimeoutExceededError,
)
from vllm_mxext.client.hedging import HedgePolicy
from vllm_mxext.client.limiter import LimiterConfig
from vllm_mxext.client.namespaces import Stream, timeouts_of
from vllm_mxext.client.pipeline import PipelineConfig
from vllm_mxext.client.retry import RetryPolicy
from vllm_mxext.client.sharing import BatchSettings
from vllm_mxext.errors import ConfigError

pytestmark = pytest.mark.promise("CLIENT-8")

ASKED: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "?"}]}


async def test_an_answer_is_read_by_attributes_and_says_how_it_came() -> None:
    async with FaultServer([healthy]) as server, AsyncVllmClient(server.url, "key") as client:
        answer = await client.chat.completions.create(**ASKED, temperature=0)
        assert isinstance(answer, Document)
        assert answer.choices[0].message.content == "".join(WORDS)
        assert answer == completion()
        assert answer.answer is not None
        assert (answer.answer.request_id, answer.answer.endpoint_id) == ("req-1", "endpoint-1")
        request = server.requests[0]
        assert (request.path, request.body) == ("/v1/chat/completions", {**ASKED, "temperature": 0})
        assert request.headers["authorization"] == "Bearer key"


async def test_the_calls_of_the_synchronous_client_are_awaited() -> None:
    conversation = [{"role": "user", "content": "?"}]
    async with FaultServer([healthy]) as server, AsyncVllmClient(server.url) as client:
        result = await client.run_inference("m", conversation, {"temperature": 0, "extra_headers": {"x-b": "2"}})
        assert result["text"] == "".join(WORDS)
        assert server.requests[0].body == {**ASKED, "temperature": 0}
        low = client.with_options(priority=LOW, extra_headers={"x-a": "1"})
        assert [piece async for piece in low.stream_generation("default", conversation)] == list(WORDS)
        assert server.requests[1].headers["x-a"] == "1"
        assert [one.priority for one in client.pipeline.metrics.recent] == [NORMAL, LOW]
        await low.run_inference("m", conversation, priority=HIGH)
        assert client.pipeline.metrics.recent[-1].priority == HIGH
        assert client.get_metrics(reset=True)["models"]["m"]["requests"]["total"] == 2
        assert client.get_metrics()["models"] == {}


async def test_prompts_share_a_request_only_if_that_is_asked_for() -> None:
    answer = {"model": "m", "choices": [{"index": 0, "text": "a"}, {"index": 1, "text": "b"}]}
    async with FaultServer([healthy]) as server, AsyncVllmClient(server.url) as client:
        each = await client.run_each("m", ["a", "b"])
        assert sorted(request.body["prompt"] for request in server.requests) == ["a", "b"]
        assert [one["metadata"]["usage"] for one in each] == [completion()["usage"]] * 2
    async with (
        FaultServer([body(json.dumps(answer))]) as server,
        AsyncVllmClient(server.url, batches=BatchSettings()) as client,
    ):
        assert [one["text"] for one in await client.run_inference("m", ["a", "b"])] == ["a", "b"]
        assert [request.body["prompt"] for request in server.requests] == [["a", "b"]]


async def test_chunks_come_one_by_one() -> None:
    async with FaultServer([healthy]) as server, AsyncVllmClient(server.url + "/v1/") as client:
        stream = await client.chat.completions.create(**ASKED, stream=True)
        assert isinstance(stream, Stream)
        assert stream.text == ""
        assert [(chunk.choices[0].delta.get("content"), stream.text) async for chunk in stream][1:-1] == [
            (word, "".join(WORDS[: number + 1])) for number, word in enumerate(WORDS)
        ]
        assert stream.text == "".join(WORDS)
        assert stream.ttft_s is not None
        assert len(stream.attempts) == 1
        assert server.requests[0].body["stream"] is True


async def test_what_goes_wrong_before_the_first_token_is_raised_by_create() -> None:
    async with FaultServer([status(404)]) as server, AsyncVllmClient(server.url) as client:
        with pytest.raises(NotFoundError):
            await client.chat.completions.create(**ASKED, stream=True)


async def test_every_namespace_has_its_path() -> None:
    async with FaultServer([body('{"data": [{"embedding": [1.0]}]}')]) as server, AsyncVllmClient(server.url) as client:
        await client.completions.create(model="m", prompt="a")
        assert (await client.embeddings.create(model="m", input="a")).data[0].embedding == [1.0]
        await client.models.list()
        await client.models.retrieve("org/base:adapter é")
        assert [(request.method, request.path) for request in server.requests] == [
            ("POST", "/v1/completions"),
            ("POST", "/v1/embeddings"),
            ("GET", "/v1/models"),
            ("GET", "/v1/models/org/base:adapter%20%C3%A9"),
        ]


async def test_options_of_a_call_are_no_fields_of_its_request() -> None:
    async with FaultServer([healthy]) as server, AsyncVllmClient(server.url) as client:
        low = client.with_options(extra_headers={"x-a": "1"}, priority=LOW)
        await low.chat.completions.create(
            **ASKED,
            extra_body={"top_k": 3},
            extra_headers={"x-b": "2"},
            timeout=9,
            affinity="session",
            endpoint_id="endpoint-1",
        )
        request = server.requests[0]
        assert request.body == {**ASKED, "top_k": 3}
        assert (request.headers["x-a"], request.headers["x-b"]) == ("1", "2")
        assert client.pipeline.metrics.recent[-1].priority == LOW


async def test_a_timeout_can_be_set_for_one_call() -> None:
    async with FaultServer([never_answer]) as server, AsyncVllmClient(server.url) as client:
        with pytest.raises(TimeoutExceededError, match=r"0\.02 s"):
            await client.chat.completions.create(**ASKED, timeout=0.02)


async def test_retries_can_be_switched_off() -> None:
    async with FaultServer([status(500)]) as server, AsyncVllmClient(server.url) as client:
        with pytest.raises(ServerError) as caught:
            await client.with_options(max_retries=0).chat.completions.create(**ASKED)
        assert len(caught.value.attempts) == 1


async def test_fallbacks_are_asked_when_the_others_are_gone() -> None:
    config = PipelineConfig(retry=RetryPolicy(max_retries=8, first_delay_s=0.001))
    async with FaultServer([healthy]) as server:
        client = AsyncVllmClient([closed_port(), closed_port()], fallbacks=[server.url], config=config)
        answer = await client.chat.completions.create(**ASKED)
        assert isinstance(answer, Document)
        assert answer.answer is not None
        assert answer.answer.endpoint_id == "endpoint-3"
        await client.close()


async def test_every_policy_is_a_setting() -> None:
    config = PipelineConfig(
        hedge=HedgePolicy(0.01), breaker=BreakerConfig(failure_threshold=1), limiter=LimiterConfig(max_limit=7)
    )
    async with FaultServer([never_answer, status(500)]) as server:
        client = AsyncVllmClient(server.url, config=config, max_retries=0)
        assert client.pipeline.endpoints[0].limiter.limit == 7
        call = asyncio.ensure_future(client.completions.create(prompt="x"))
        await server.until_asked(2)
        while client.pipeline.endpoints[0].breaker.state == "CLOSED":  # noqa: ASYNC110 - a breaker has no event
            await asyncio.sleep(0.001)
        call.cancel()
        assert (
            AsyncVllmClient(server.url, config=config, max_concurrent_requests=3).pipeline.config.limiter.max_limit == 3
        )
        await client.close()


async def test_address_and_key_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    async with FaultServer([healthy]) as server:
        monkeypatch.setenv("VLLM_API_URL", server.url)
        monkeypatch.setenv("VLLM_API_KEY", "secret")
        async with AsyncVllmClient() as client:
            await client.chat.completions.create(**ASKED)
            assert server.requests[0].headers["authorization"] == "Bearer secret"
            assert "secret" not in repr(client.pipeline.endpoints)


@pytest.mark.parametrize(("url", "key"), [("127.0.0.1:8000", ""), ("http://127.0.0.1", "a\nb"), ("", ""), ([], "")])
def test_an_address_or_key_that_cannot_be_is_refused_at_once(url: Any, key: str) -> None:
    with pytest.raises(ConfigError):
        AsyncVllmClient(url, key)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("timeout", value) for value in ("5", 0, -1, True, float("nan"))],
        *[("max_retries", value) for value in (-1, "1", 0.5)],
        *[("priority", value) for value in (None, "0", 1.5, 3, -1)],
        *[("extra_headers", value) for value in ("x", {"x": 1})],
        ("extra_body", [1]),
    ],
)
async def test_an_option_that_cannot_be_is_refused_by_name(name: str, value: Any) -> None:
    async with AsyncVllmClient(closed_port()) as client:
        with pytest.raises(ConfigError, match=name):
            await client.chat.completions.create(**ASKED, **{name: value})


async def test_a_stream_that_is_asked_for_sideways_and_a_model_without_a_name_are_refused() -> None:
    async with AsyncVllmClient(closed_port()) as client:
        with pytest.raises(BadRequestError, match="stream=True"):
            await client.chat.completions.create(**ASKED, extra_body={"stream": True})
        with pytest.raises(BadRequestError, match="name"):
            await client.models.retrieve("")


def test_a_client_is_not_copied() -> None:
    with pytest.raises(TypeError, match="one in each process"):
        pickle.dumps(AsyncVllmClient(closed_port()))


async def test_an_answer_that_is_no_object_is_refused() -> None:
    async with FaultServer([body("[1]")]) as server, AsyncVllmClient(server.url) as client:
        with pytest.raises(ProtocolError, match="no JSON object"):
            await client.models.list()


def test_an_unknown_option_is_refused() -> None:
    with pytest.raises(ClientError, match="no option 'timeuot'"):
        AsyncVllmClient("http://127.0.0.1:1").with_options(timeuot=3)


def test_a_number_of_seconds_limits_the_whole_call() -> None:
    assert timeouts_of(3) == Timeouts(connect=3, first_token=3, idle=3, total=3)
    assert timeouts_of(300.0) == Timeouts(connect=5.0, first_token=300.0, idle=60.0, total=300.0)
    assert timeouts_of(None) is None


def test_a_document_stays_a_dictionary() -> None:
    document = Document({"a": [{"b": 1}], "items": 2, "long": [0.5]})
    assert document.a[0].b == 1
    assert document["items"] == 2
    assert json.loads(json.dumps(document)) == {"a": [{"b": 1}], "items": 2, "long": [0.5]}
    assert pickle.loads(pickle.dumps(document)) == document
    with pytest.raises(AttributeError, match="no field 'c'; it has a, items, long"):
        _ = document.c


async def test_a_list_of_models_is_gone_through_as_that_of_openai_is() -> None:
    cards = [{"id": "a", "object": "model"}, {"id": "b", "object": "model"}]
    async with FaultServer([body(json.dumps({"object": "list", "data": cards}))]) as server:
        async with AsyncVllmClient(server.url) as client:
            assert [one.id async for one in client.models.list()] == ["a", "b"]
            page = await client.models.list()
            assert [one.id async for one in page] == [one.id for one in page] == [one.id for one in page.data]
            assert {**page} == dict(page) == page == {"object": "list", "data": cards}
            assert (
                json.loads(json.dumps(page)) == page.model_dump(exclude_unset=True) == pickle.loads(pickle.dumps(page))
            )
            assert page.answer is not None
            client.models.list()  # asks for nothing
        assert len(server.requests) == 2
