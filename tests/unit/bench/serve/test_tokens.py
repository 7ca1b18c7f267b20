"""Servers that count tokens answer in two ways."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
import pytest

from vllm_mxext.bench.serve.tokens import ServerTokenCounter
from vllm_mxext.bench.serve.wire import Exchange


class Tokenizing:
    """In the place of a `Wire`: answers `/tokenize` by what `answer` makes of the request."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer
        self.num_asked = 0

    async def send(self, method: str, path: str, body: bytes, *, timeout_s: float) -> Exchange:
        assert (method, path) == ("POST", "/tokenize")
        self.num_asked += 1
        said = orjson.dumps(self._answer(orjson.loads(body)))
        return Exchange(None, asyncio.get_running_loop().create_future(), status=200, body=bytearray(said))


def vllm(body: dict[str, Any]) -> dict[str, Any]:
    ids = [7] * len(body["prompt"].split())
    return {"count": len(ids), "max_model_len": 1024, "tokens": ids, "token_strs": None}


def llama_cpp(body: dict[str, Any]) -> dict[str, Any]:
    return {"tokens": [7] * len(body.get("content", "").split())}


@pytest.mark.promise("PERF-10")
@pytest.mark.parametrize("answer", [vllm, llama_cpp])
def test_tokens_are_counted_by_servers_of_either_kind(answer: Any) -> None:
    assert asyncio.run(ServerTokenCounter(Tokenizing(answer), "m").count("a b c")) == 3  # type: ignore[arg-type]


@pytest.mark.parametrize("said", [{"detail": "Not Found"}, {"tokens": 3}, {"count": "3"}, [3], 3])
def test_a_server_that_does_not_count_is_asked_once(said: object) -> None:
    wire = Tokenizing(lambda _: said)
    counter = ServerTokenCounter(wire, "m")  # type: ignore[arg-type]
    assert [asyncio.run(counter.count(text)) for text in "ab"] == [None, None]
    assert wire.num_asked == 1
