"""Which texts are embedded with one request, and what each caller gets of its answer."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from tests.client.fault_server import FaultServer, Reply, Request, status
from vllm_mxext.client.async_client import AsyncVllmClient
from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.document import Document
from vllm_mxext.client.errors import (
    BadRequestError,
    ClientError,
    ClosedError,
    ProtocolError,
    ServerError,
    StatusError,
    TimeoutExceededError,
)
from vllm_mxext.client.pipeline import PipelineConfig
from vllm_mxext.client.retry import RetryPolicy
from vllm_mxext.client.sharing import BatchSettings
from vllm_mxext.client.vllm_client import VllmClient

pytestmark = pytest.mark.promise("CLIENT-16")

FOR_EVER_S = 3600.0
QUICKLY = PipelineConfig(retry=RetryPolicy(max_retries=1, first_delay_s=0.0))


class Embedder:
    """Embeds a text as its length, as soon as `num_together` requests have come; texts in `bad` get their status."""

    def __init__(self, num_together: int = 1, bad: dict[str, int] | None = None, num_lost: int = 0) -> None:
        self.inputs: list[Any] = []
        self._num_together = num_together
        self._bad = bad or {}
        self._num_lost = num_lost
        self._are_there = asyncio.Event()

    async def __call__(self, request: Request, reply: Reply) -> None:
        given = request.body["input"]
        self.inputs.append(given)
        if len(self.inputs) >= self._num_together:
            self._are_there.set()
        await self._are_there.wait()
        texts = given if isinstance(given, list) else [given]
        wrong = next((self._bad[text] for text in texts if text in self._bad), None)
        if wrong is not None:
            await status(wrong)(request, reply)
            return
        is_text = request.body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": f"{len(text)}==" if is_text else [float(len(text))]}
            for index, text in enumerate(texts)
        ]
        usage = {"prompt_tokens": 3 * len(texts), "total_tokens": 3 * len(texts)}
        answer = {"object": "list", "model": "m", "data": data[::-1][self._num_lost :], "usage": usage}
        await reply.whole(200, json.dumps(answer).encode())


def client_of(server: FaultServer, size: int, wait_s: float = FOR_EVER_S) -> AsyncVllmClient:
    return AsyncVllmClient(server.url, config=QUICKLY, batches=BatchSettings(max_size=size, timeout_s=wait_s))


async def embed(client: AsyncVllmClient, *texts: Any, **fields: Any) -> list[Any]:
    asked = (client.embeddings.create(model="m", input=text, **fields) for text in texts)
    return await asyncio.gather(*asked, return_exceptions=True)


def lengths(answers: list[Any]) -> list[Any]:
    return [one.data[0].embedding if isinstance(one, Document) else type(one) for one in answers]


async def test_texts_of_concurrent_calls_are_one_request_and_everybody_gets_an_answer_of_his_own() -> None:
    embedder = Embedder(num_together=2)
    async with FaultServer([embedder]) as server, client_of(server, 3) as client:
        alone, *together = await embed(client, "a", "bb", "ccc", "dddd", dimensions=1)
        assert embedder.inputs == ["a", ["bb", "ccc", "dddd"]]
        assert {request.path for request in server.requests} == {"/v1/embeddings"}
        assert server.requests[1].body == {"model": "m", "input": ["bb", "ccc", "dddd"], "dimensions": 1}
        assert lengths([alone, *together]) == [[1.0], [2.0], [3.0], [4.0]]
        assert alone.usage == {"prompt_tokens": 3, "total_tokens": 3}
        for one in together:
            assert (one.object, one.model, one.usage) == ("list", "m", None)
            assert one.batch == {"size": 3, "usage": {"prompt_tokens": 9, "total_tokens": 9}}
            assert (len(one.data), one.data[0].index, one.data[0].object) == (1, 0, "embedding")
            assert one.answer.request_id == "req-1"
        metrics = client.pipeline.metrics.snapshot()
        assert metrics["tokens"]["prompt"] == 12
        assert metrics["requests"]["total"] == 2


async def test_texts_go_when_the_first_has_waited_long_enough() -> None:
    embedder = Embedder(num_together=2)
    async with FaultServer([embedder]) as server, client_of(server, 9, wait_s=0.001) as client:
        assert lengths(await embed(client, "a", "bb", "ccc")) == [[1.0], [2.0], [3.0]]
        assert embedder.inputs == ["a", ["bb", "ccc"]]


async def test_calls_one_after_the_other_wait_for_nobody() -> None:
    embedder = Embedder()
    async with FaultServer([embedder]) as server, client_of(server, 9) as client:
        for text in ("a", "bb"):
            assert lengths(await embed(client, text)) == [[float(len(text))]]
        assert embedder.inputs == ["a", "bb"]


@pytest.mark.parametrize(
    "other",
    [
        {"model": "other"},
        {"dimensions": 2},
        {"encoding_format": "float"},
        {"user": "somebody"},
        {"priority": 0},
        {"timeout": 50},
        {"max_retries": 3},
        {"affinity": "session"},
        {"endpoint_id": "endpoint-1"},
        {"extra_headers": {"x-a": "1"}},
        {"extra_body": {"truncate_prompt_tokens": 5}},
    ],
)
async def test_calls_that_differ_in_anything_stay_apart(other: dict[str, Any]) -> None:
    embedder = Embedder(num_together=3)
    async with FaultServer([embedder]) as server, client_of(server, 2) as client:
        first = asyncio.ensure_future(client.embeddings.create(model="m", input="first"))
        await server.until_asked()
        usual = [client.embeddings.create(model="m", input=text) for text in ("a", "b")]
        others = [client.embeddings.create(**{"model": "m", **other}, input=text) for text in ("c", "d")]
        await asyncio.gather(first, usual[0], others[0], others[1], usual[1])
        assert sorted(map(str, embedder.inputs[1:])) == ["['a', 'b']", "['c', 'd']"]


async def test_options_of_a_client_count_too_and_equal_ones_go_together_across_clients() -> None:
    embedder = Embedder(num_together=3)
    async with FaultServer([embedder]) as server, client_of(server, 2) as client:
        named = [client.with_options(extra_headers={"x-tenant": name}) for name in ("a", "b", "a", "b")]
        asked = [one.embeddings.create(model="m", input=f"text {number}") for number, one in enumerate(named)]
        await asyncio.gather(client.embeddings.create(model="m", input="first"), *asked)
        got = {request.headers.get("x-tenant"): request.body["input"] for request in server.requests}
        assert got == {None: "first", "a": ["text 0", "text 2"], "b": ["text 1", "text 3"]}


@pytest.mark.parametrize("given", [["a", "b"], ["a"], [1, 2, 3], [[1, 2], [3]], ("a", "b")])
async def test_lists_and_token_ids_are_sent_as_they_are(given: Any) -> None:
    asked: list[Any] = []

    async def answer(request: Request, reply: Reply) -> None:
        asked.append(request.body["input"])
        await reply.whole(200, b'{"data": [], "usage": {"prompt_tokens": 1}}')

    async with FaultServer([answer]) as server, client_of(server, 2) as client:
        answers = await embed(client, given, given)
        assert asked == [list(given)] * 2
        assert [one.usage.prompt_tokens for one in answers] == [1, 1]


async def test_a_body_that_brings_an_input_of_its_own_is_left_alone() -> None:
    embedder = Embedder()
    async with FaultServer([embedder]) as server, client_of(server, 2) as client:
        await embed(client, "a", "b", extra_body={"input": "c"})
        await embed(client.with_options(extra_body={"input": "d"}), "a", "b")
        assert embedder.inputs == ["c", "c", "d", "d"]


async def test_the_format_is_that_which_was_asked_for() -> None:
    embedder = Embedder(num_together=2)
    async with FaultServer([embedder]) as server, client_of(server, 2) as client:
        assert lengths(await embed(client, "a", "bb", "ccc", encoding_format="base64")) == ["1==", "2==", "3=="]
        assert len(embedder.inputs) == 2


async def test_batching_can_be_switched_off() -> None:
    embedder = Embedder(num_together=3)
    async with FaultServer([embedder]) as server, client_of(server, 2) as client:
        client.batches.is_enabled = False
        assert lengths(await embed(client, "a", "bb", "ccc")) == [[1.0], [2.0], [3.0]]


@pytest.mark.parametrize("code", [400, 413, 422, 500])
async def test_a_bad_text_harms_nobody_else_and_lists_go_on(code: int) -> None:
    embedder = Embedder(num_together=2, bad={"bad": code})
    async with FaultServer([embedder]) as server, client_of(server, 4) as client:
        first, a, bad, b, c = await embed(client, "first", "a", "bad", "bb", "ccc")
        assert lengths([first, a, b, c]) == [[5.0], [1.0], [2.0], [3.0]]
        assert isinstance(bad, StatusError)
        assert bad.status == code
        assert client.pipeline.endpoints[0].breaker.state == "CLOSED"
        num_asked = len(embedder.inputs)
        await embed(client, *"uvwxy")
        assert embedder.inputs[num_asked:] == ["u", ["v", "w", "x", "y"]]


async def test_a_server_that_takes_no_lists_is_asked_one_by_one_and_sent_no_further_list() -> None:
    embedder = Embedder()

    async def listless(request: Request, reply: Reply) -> None:
        is_list = isinstance(request.body["input"], list)
        embedder.inputs.extend([request.body["input"]] if is_list else [])
        await (status(500)(request, reply) if is_list else embedder(request, reply))

    async with FaultServer([listless]) as server, client_of(server, 2) as client:
        for _ in range(2):
            assert lengths(await embed(client, "a", "bb", "ccc")) == [[1.0], [2.0], [3.0]]
        assert [one for one in embedder.inputs if isinstance(one, list)] == [["bb", "ccc"]]


async def test_an_answer_that_lacks_a_text_is_an_error_that_says_what_to_set() -> None:
    async with FaultServer([Embedder(num_together=2, num_lost=1)]) as server, client_of(server, 2) as client:
        _, *together = await embed(client, "a", "b", "c")
        assert [type(one) for one in together] == [ProtocolError] * 2
        assert "batch_enabled" in str(together[0])


async def test_a_cancelled_caller_harms_no_other() -> None:
    embedder = Embedder(num_together=3)
    async with FaultServer([embedder]) as server, client_of(server, 3) as client:
        asked = [asyncio.ensure_future(client.embeddings.create(model="m", input=text)) for text in "abcd"]
        await server.until_asked(2)
        asked[2].cancel()
        await asyncio.wait([asked[2]])
        assert lengths([await client.embeddings.create(model="m", input=["x"])]) == [[1.0]]
        assert lengths([await asked[index] for index in (0, 1, 3)]) == [[1.0]] * 3
        assert embedder.inputs == ["a", ["b", "c", "d"], ["x"]]


async def test_a_list_is_tried_again_like_any_call() -> None:
    embedder = Embedder()
    faults = [embedder, status(503), embedder]
    async with FaultServer(faults) as server, client_of(server, 2) as client:
        _, *together = await embed(client, "a", "bb", "ccc")
        assert lengths(together) == [[2.0], [3.0]]
        assert [len(one.answer.attempts) for one in together] == [2, 2]


async def test_limits_of_time_are_those_of_the_call() -> None:
    async def answer_texts(request: Request, reply: Reply) -> None:
        await (Embedder()(request, reply) if isinstance(request.body["input"], str) else reply.until_gone())

    async with FaultServer([answer_texts]) as server, client_of(server, 2) as client:
        limited = embed(client, "b", "c", timeout=Timeouts(first_token=0.02), max_retries=0)
        first, together = await asyncio.gather(embed(client, "a"), limited)
        assert lengths(first + together) == [[1.0], TimeoutExceededError, TimeoutExceededError]


async def test_texts_that_wait_end_with_the_client() -> None:
    async with FaultServer([Embedder(num_together=9)]) as server:
        client = client_of(server, 9)
        asked = asyncio.ensure_future(embed(client, "a", "b"))
        await server.until_asked()
        await client.close()
        assert lengths(await asked) == [ClosedError, ClosedError]


async def test_an_error_of_the_server_is_a_typed_one_for_everybody() -> None:
    async with FaultServer([status(500)]) as server, client_of(server, 2) as client:
        assert lengths(await embed(client, *"abc", max_retries=0)) == [ServerError] * 3


@pytest.mark.parametrize("fields", [{"dimensions": float("nan")}, {"stream": True}, {"dimensions": object()}])
async def test_fields_that_cannot_be_sent_are_refused(fields: dict[str, Any]) -> None:
    async with FaultServer([Embedder()]) as server, client_of(server, 2) as client:
        assert all(isinstance(one, ClientError) for one in await embed(client, *"abc", **fields))
        assert lengths(await embed(client, "a", dimensions=float("nan"))) == [BadRequestError]
        assert server.requests == []


async def test_threads_share_requests_of_a_synchronous_client() -> None:
    embedder = Embedder(num_together=2)
    async with FaultServer([embedder]) as server:
        with (
            ThreadPoolExecutor(4) as threads,
            VllmClient(base_url=server.url, max_batch_size=3, batch_timeout=FOR_EVER_S) as client,
        ):

            def ask(text: str) -> Document:
                return client.embeddings.create(model="m", input=text)

            loop = asyncio.get_running_loop()
            texts = ["a", "bb", "ccc", "dddd"]
            answers = await asyncio.gather(*(loop.run_in_executor(threads, ask, text) for text in texts))
            assert lengths(answers) == [[1.0], [2.0], [3.0], [4.0]]
            assert sorted(len(one) for one in embedder.inputs if isinstance(one, list)) == [3]
            assert client.get_metrics()["batches"]["count"] == 1
            client.batch_enabled = False
            await asyncio.gather(*(loop.run_in_executor(threads, ask, text) for text in texts))
            assert len(embedder.inputs) == 6
