"""Which prompts become one request, and what becomes of its answer."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
import pytest

from vllm_mxext.client.call import Timeouts
from vllm_mxext.client.errors import BadRequestError, ProtocolError, ServerError
from vllm_mxext.client.inference import Inference
from vllm_mxext.client.namespaces import CallOptions, Requests
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.client.settings import ClientSettings
from vllm_mxext.client.sharing import BatchSettings

pytestmark = pytest.mark.promise("CLIENT-10")


LLAMA_CPP_PYTHON_S_ERROR = {"error": {"message": "", "type": "internal_server_error", "param": None, "code": None}}
"""Of `llama_cpp.server` 0.3.36 to every list of prompts."""


class Server:
    """Answers each prompt with itself, when as many requests as `num_together` have come; keeps the bodies."""

    def __init__(self, num_lost: int = 0, num_together: int = 1, *, takes_lists: bool = True) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.takes_lists = takes_lists
        self.is_well = True
        self._num_lost = num_lost
        self._num_together = num_together
        self._are_there = asyncio.Event()

    async def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        self.bodies.append(body)
        if len(self.bodies) >= self._num_together:
            self._are_there.set()
        await self._are_there.wait()
        if not self.is_well or (isinstance(body["prompt"], list) and not self.takes_lists):
            return httpx.Response(500, json=LLAMA_CPP_PYTHON_S_ERROR)
        prompts = body["prompt"] if isinstance(body["prompt"], list) else [body["prompt"]]
        choices = [{"index": index, "text": text, "finish_reason": "stop"} for index, text in enumerate(prompts)]
        usage = {"prompt_tokens": len(prompts), "completion_tokens": 2 * len(prompts)}
        kept = choices[::-1][self._num_lost :]
        return httpx.Response(200, json={"model": "m", "choices": kept, "usage": usage})

    @property
    def prompts(self) -> list[Any]:
        return [body["prompt"] for body in self.bodies]

    def inference(self, **batches: Any) -> Inference:
        endpoint = ClientSettings.read({"base_url": "http://server", "max_retries": 0}, {}).endpoint("e")
        pipeline = Pipeline([endpoint], transport=httpx.MockTransport(self))
        return Inference(pipeline, Requests(pipeline, CallOptions()), BatchSettings(**batches))


async def test_calls_at_the_same_time_with_equal_parameters_become_one_request() -> None:
    server = Server(num_together=2)
    inference = server.inference(max_size=2, timeout_s=3600)
    results = await asyncio.gather(*(inference.run("m", text, {"max_tokens": 5}, {}) for text in "abc"))
    assert server.prompts == ["a", ["b", "c"]]
    assert [one["text"] for one in results] == ["a", "b", "c"]
    assert results[0]["metadata"]["usage"] == {"prompt_tokens": 1, "completion_tokens": 2}
    batch = {"size": 2, "usage": {"prompt_tokens": 2, "completion_tokens": 4}}
    assert results[1]["metadata"] == {"finish_reason": "stop", "model": "m", "usage": None, "batch": batch}


async def test_calls_one_after_the_other_wait_for_nobody() -> None:
    server = Server()
    inference = server.inference(max_size=8, timeout_s=3600)
    assert [(await inference.run("m", text, {}, {}))["text"] for text in "abc"] == ["a", "b", "c"]
    assert server.prompts == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("parameters", "batches"),
    [([{}, {"max_tokens": 1}, {"max_tokens": 2}], {}), ([{}] * 3, {"is_enabled": False})],
)
async def test_other_calls_stay_apart(parameters: list[dict[str, Any]], batches: dict[str, Any]) -> None:
    server = Server(num_together=3)
    inference = server.inference(timeout_s=0, **batches)
    await asyncio.gather(*(inference.run("m", "a", one, {}) for one in parameters))
    assert server.prompts == ["a"] * 3


async def test_an_answer_that_lacks_a_prompts_choice_is_an_error() -> None:
    with pytest.raises(ProtocolError, match="batch_enabled"):
        await Server(num_lost=1).inference().run("m", ["a", "b"], {}, {})
    with pytest.raises(ProtocolError, match="no choices"):
        await Server(num_lost=1).inference().run("m", "a", {}, {})


async def test_default_names_no_model() -> None:
    server = Server()
    for model in ("default", "", "m"):
        await server.inference().run(model, "a", {}, {})
    assert [body.get("model") for body in server.bodies] == [None, None, "m"]


@pytest.mark.parametrize(
    "inputs", [[1, 2], ["a", {"role": "user"}], {}, {"prompt": "a", "messages": []}, None, 5, b"", object()]
)
async def test_inputs_of_no_known_form_are_refused(inputs: Any) -> None:
    inference = Server().inference()
    with pytest.raises(BadRequestError):
        await inference.run("m", inputs, {}, {})
    with pytest.raises(BadRequestError):
        await anext(inference.stream("m", inputs, {}, {}))


@pytest.mark.parametrize("prompts", ["abc", None, [1], {"prompt": "a"}, b"ab"])
async def test_a_batch_is_a_list_of_texts_and_not_the_letters_of_one(prompts: Any) -> None:
    server = Server()
    with pytest.raises(BadRequestError):
        await server.inference().run_all("m", prompts, {}, {})
    assert server.bodies == []


async def test_prompts_that_can_be_looked_at_once_are_all_asked() -> None:
    once: Any = (text for text in "abc")
    results = await Server().inference().run("m", once, {}, {})
    assert [one["text"] for one in results] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("parameters", "words"),
    [
        ({"seed": object()}, "JSON"),
        ({1: 2, "a": 3}, "JSON"),
        ("temperature", "Parameters are fields"),
        ({"temperature": float("nan")}, "JSON"),
        ({"stream": True}, "stream_generation"),
        ({"n": 2}, "n must be 1"),
    ],
)
@pytest.mark.parametrize("inputs", ["a", ["a", "b"]])
async def test_parameters_that_no_result_can_come_of_are_refused(inputs: Any, parameters: Any, words: str) -> None:
    with pytest.raises(BadRequestError, match=words):
        await Server().inference().run("m", inputs, parameters, {})


@pytest.mark.parametrize("inputs", ["a", ["a", "b"]])
async def test_options_may_be_among_the_parameters_and_win(inputs: Any) -> None:
    server = Server()
    inference = server.inference()
    parameters = {"priority": 2, "timeout": Timeouts(total=9), "extra_body": {"top_k": 3}, "max_retries": 1}
    await inference.run("m", inputs, parameters, {"priority": 1})
    assert server.bodies[0] == {"model": "m", "prompt": inputs, "top_k": 3}
    assert [one.priority for one in inference.pipeline.metrics.recent] == [2]


@pytest.mark.parametrize("is_enabled", [True, False])
async def test_a_list_longer_than_the_queue_is_answered_as_a_whole(is_enabled: bool) -> None:
    inference = Server().inference(is_enabled=is_enabled, max_size=2)
    inference.pipeline.max_queue = 1
    prompts = [f"p{number}" for number in range(100)]
    results = await inference.run_all("m", prompts, {}, {})
    assert [isinstance(one, dict) and one["text"] for one in results] == prompts


async def test_no_prompts_have_no_results() -> None:
    server = Server()
    assert await server.inference().run("m", [], {}, {}) == []
    assert server.bodies == []


@pytest.mark.promise("CLIENT-16")
async def test_a_server_that_takes_no_lists_is_asked_one_by_one_and_sent_no_further_list() -> None:
    server = Server(takes_lists=False)
    inference = server.inference(max_size=2, timeout_s=3600)
    assert [one["text"] for one in await inference.run("m", ["a", "b"], {}, {})] == ["a", "b"]
    assert server.prompts == [["a", "b"], "a", "b"]
    assert inference.pipeline.endpoints[0].breaker.failure_count == 0
    results = await asyncio.gather(*(inference.run("m", text, {}, {}) for text in "cdef"))
    assert [one["text"] for one in results] == ["c", "d", "e", "f"]
    assert server.prompts[3:] == ["c", "d", "e", "f"]


@pytest.mark.promise("CLIENT-16")
async def test_many_lists_at_once_do_not_open_the_breaker_of_a_server_that_takes_none() -> None:
    inference = Server(takes_lists=False).inference(max_size=2)
    prompts = [f"p{number}" for number in range(40)]
    assert [one["text"] for one in await inference.run("m", prompts, {}, {})] == prompts


@pytest.mark.promise("CLIENT-16")
async def test_a_server_that_is_ill_is_not_taken_for_one_without_lists() -> None:
    server = Server()
    server.is_well = False
    inference = server.inference(max_size=2)
    with pytest.raises(ServerError):
        await inference.run("m", ["a", "b"], {"max_retries": 0}, {})
    server.is_well = True
    await inference.run("m", ["c", "d"], {"max_retries": 0}, {})
    assert server.prompts == [["a", "b"], "a", "b", ["c", "d"]]
    server.is_well = False
    with pytest.raises(ServerError):
        await inference.run("m", ["e", "f"], {"max_retries": 0}, {})
    assert server.prompts[4:] == [["e", "f"], "e", "f"]
