"""Models, adapters and figures of servers that are not ours; answers as vLLM 0.32 gives them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from vllm_mxext.client import handlers
from vllm_mxext.client.errors import ClientError, NotFoundError, ProtocolError
from vllm_mxext.client.namespaces import CallOptions, Requests
from vllm_mxext.client.pipeline import Pipeline
from vllm_mxext.client.server_calls import MAIN, ServerCalls
from vllm_mxext.client.settings import ClientSettings
from vllm_mxext.client.sync_face import SyncFace

pytestmark = pytest.mark.promise("CLIENT-10")

BASE = {"id": "base", "object": "model", "owned_by": "vllm", "parent": None, "max_model_len": 2048}
ADAPTER = {"id": "math", "object": "model", "owned_by": "vllm", "parent": "base", "root": "/math"}


class Vllm:
    """Has no `/v1/models/{name}`, no `/v1/lora_adapters` and no `base:adapter`, and calls plain text JSON."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {"/v1/models": {"object": "list", "data": [BASE, ADAPTER]}}
        self.hosts: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.hosts.append(request.url.host)
        path = request.url.path
        if path.endswith("load_lora_adapter"):
            return httpx.Response(200, text="Success: done.", headers={"content-type": "application/json"})
        if path == "/v1/chat/completions" and (name := json.loads(request.content)["model"]) in ("base", "math"):
            return httpx.Response(200, json={"model": name, "choices": []})
        if path in self.answers:
            return httpx.Response(200, json=self.answers[path])
        return httpx.Response(404, json={"detail": "Not Found"})


@pytest.fixture
def vllm() -> Vllm:
    return Vllm()


@pytest.fixture
def calls(vllm: Vllm) -> Iterator[ServerCalls]:
    names = {MAIN: "first", "other": "second"}
    endpoints = [
        ClientSettings.read({"base_url": f"http://{host}", "max_retries": 0}, {}).endpoint(name)
        for name, host in names.items()
    ]
    pipeline = Pipeline(endpoints, transport=httpx.MockTransport(vllm))
    with SyncFace(pipeline.close) as face:
        yield ServerCalls(face, pipeline, Requests(pipeline, CallOptions()), "default")


def test_a_model_is_found_in_the_list(calls: ServerCalls) -> None:
    assert calls.get_model("math") == ADAPTER
    for name in (None, "", "default"):
        assert calls.get_model(name) == BASE
    with pytest.raises(NotFoundError):
        calls.get_model("nobody")


def test_a_model_that_is_not_listed_is_asked_for(calls: ServerCalls, vllm: Vllm) -> None:
    vllm.answers["/v1/models/base:math"] = ADAPTER
    assert calls.get_model("base:math") == ADAPTER


def test_adapters_are_updated_listed_and_asked_at_the_first_server(calls: ServerCalls, vllm: Vllm) -> None:
    assert calls.load_lora("math", "/math") == {"message": "Success: done."}
    assert calls.list_loras() == [{**ADAPTER, "name": "math"}]
    assert calls.chat_with_lora("math", [])["model"] == "math"
    assert calls.unload_lora("math")["message"] == "Success: done."
    assert set(vllm.hosts) == {"first"}


@pytest.mark.parametrize("answer", [{}, {"data": None}, {"data": "base"}, {"data": ["base"]}, {"data": [{"x": 1}]}])
def test_a_list_that_is_none_is_told(calls: ServerCalls, vllm: Vllm, answer: Any) -> None:
    vllm.answers["/v1/models"] = answer
    for ask in (calls.get_model, calls.list_loras):
        with pytest.raises(ProtocolError, match="no list"):
            ask()


def test_a_server_without_a_model_is_told(calls: ServerCalls, vllm: Vllm) -> None:
    vllm.answers["/v1/models"] = {"data": []}
    with pytest.raises(ClientError, match="lists no model"):
        calls.get_model()


@pytest.mark.promise("CLIENT-11")
def test_figures_of_several_engines_of_a_server_stay_apart() -> None:
    text = "# TYPE q gauge\n" + "".join(f'q{{engine="{number}",model_name="m"}} {number + 3}\n' for number in (0, 1))
    assert dict(handlers._figures(text + 'q{model_name="other"} 9\n', "m")) == {"q": 3.0, 'q{engine="1"}': 4.0}
