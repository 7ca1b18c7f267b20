"""Adapters over HTTP: loaded, named in requests, listed, watched and unloaded."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.api.refusals import CHAT, PLAIN, error_of, refused
from vllm_mxext.config.server import LoRAModule, LoRAServingConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.client import AdapterInfo
from vllm_mxext.errors import ConfigError, EngineDeadError

pytestmark = pytest.mark.promise("LORA-API-1")

LOAD, UNLOAD, LIST = "/v1/load_lora_adapter", "/v1/unload_lora_adapter", "/v1/lora_adapters"

ServeAdapters = Callable[..., Awaitable[Any]]


@pytest.fixture
def adapter(tmp_path: Path) -> Callable[..., Path]:
    """`adapter(name, rank)`: a folder as the fake engine reads it."""

    def make(name: str = "math", rank: int = 8, folder: Path = tmp_path) -> Path:
        path = folder / name
        path.mkdir(exist_ok=True, parents=True)
        (path / "adapter_config.json").write_text(json.dumps({"r": rank}))
        return path

    return make


@pytest.fixture
def serve_adapters(serve) -> ServeAdapters:
    """`await serve_adapters(...)`: a server with two adapter slots that lets clients load adapters."""

    async def start(clock: Any = None, *, allows_updates: bool = True, **lora: Any) -> Any:
        config = ServerConfig(lora=LoRAServingConfig(allows_updates=allows_updates, **lora))
        server = await serve(FakeEngineClient(max_loras=2), config, clock)
        while (await server.http.get("/health")).status_code == 503 and not server.task.done():
            pass
        return server

    return start


async def load(server: Any, path: Path, name: str = "math", **fields: Any) -> str:
    response = await server.http.post(LOAD, json={"lora_name": name, "lora_path": str(path), **fields})
    assert response.status_code == 200, response.text
    return response.json()["message"]


async def listed(server: Any) -> dict[str, Any]:
    response = await server.http.get(LIST)
    assert response.status_code == 200
    return response.json()


async def said(server: Any, model: str, **fields: Any) -> str:
    response = await server.http.post(
        "/v1/completions", json={"prompt": "hello", "model": model, "max_tokens": 64, **fields}
    )
    assert response.status_code == 200, response.text
    assert response.json()["model"] == model
    return response.json()["choices"][0]["text"]


async def test_loading_and_unloading_answer_in_the_words_of_vllm(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    assert await load(server, adapter()) == "Success: LoRA adapter 'math' added successfully."
    response = await server.http.post(UNLOAD, json={"lora_name": "math"})
    assert response.json() == {"message": "Success: LoRA adapter 'math' removed successfully."}
    assert (await listed(server))["data"] == []


@pytest.mark.parametrize("name", ["math", "fake-model:math", "org/fake-model:math", "base_model:math"])
async def test_an_adapter_answers_to_its_name_alone_and_behind_the_models(serve_adapters, adapter, name: str) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    assert await said(server, name) == "[math.1*1] hello"
    assert await said(server, "fake-model") == "hello"


async def test_chat_streams_and_samples_use_the_adapter(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    client = server.openai()
    made = ""
    stream = await client.chat.completions.create(**CHAT, model="math", stream=True)
    async for chunk in stream:
        assert chunk.model == "math"
        made += "".join(choice.delta.content or "" for choice in chunk.choices)
    assert made.startswith("[math.1*1] ")
    answer = await client.chat.completions.create(**CHAT, model="base_model:math", n=2)
    assert all((choice.message.content or "").startswith("[math.1*1] ") for choice in answer.choices)
    beams = await said(server, "math", use_beam_search=True, n=2, temperature=0, max_tokens=12)
    assert beams.startswith("[math.1*1]")


async def test_an_unknown_name_is_a_404_that_names_what_is_served(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    for name in ("maths", "base_model:maths", "math:fake-model", "base_model:"):
        error = await refused(server, "/v1/completions", {**PLAIN, "model": name}, 404)
        assert error["type"] == "NotFoundError"
        assert "`fake-model`" in error["message"]
        assert "`math`" in error["message"]
    with pytest.raises(openai.NotFoundError):
        await server.openai().chat.completions.create(**CHAT, model="maths")


async def test_names_of_adapters_are_valid_where_they_change_nothing(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    for path, body in (
        ("/tokenize", PLAIN),
        ("/detokenize", {"tokens": [65]}),
        ("/v1/completions/render", PLAIN),
        ("/v1/chat/completions/render", CHAT),
    ):
        assert (await server.http.post(path, json={**body, "model": "base_model:math"})).status_code == 200
        await refused(server, path, {**body, "model": "base_model:code"}, 404)


async def test_the_models_list_shows_the_lineage_of_adapters(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    path = adapter()
    await load(server, path)
    await load(server, path, "named", base_model_name="org/fake-model")
    await load(server, path, "foreign", base_model_name="org/other")
    models = {card.id: card.model_dump() async for card in server.openai().models.list()}
    assert models["fake-model"]["parent"] is None
    assert (models["math"]["root"], models["math"]["parent"]) == (str(path), "fake-model")
    assert (models["named"]["parent"], models["foreign"]["parent"]) == ("org/fake-model", "fake-model")
    card = await server.openai().models.retrieve("base_model:math")
    assert card.id == "math"


async def test_a_scale_reaches_the_engine_and_needs_an_adapter(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    assert await said(server, "math", lora_scale=0.5) == "[math.1*0.5] hello"
    assert await said(server, "math", lora_scale=0.5, use_beam_search=True, n=1, best_of=2) == "[math.1*0.5] hello"
    assert (await refused(server, "/v1/completions", {**PLAIN, "lora_scale": 0.5}))["param"] == "lora_scale"
    for scale in (1e30, -1, "much"):
        error = await refused(server, "/v1/completions", {**PLAIN, "model": "math", "lora_scale": scale})
        assert error["param"] == "lora_scale"


async def test_the_form_of_llama_cpp_chooses_by_id(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    await load(server, adapter("code"), "code")
    ids = {entry["name"]: entry["id"] for entry in (await listed(server))["data"]}
    both = [{"id": ids["math"], "scale": 0}, {"id": ids["code"], "scale": 2}]
    assert await said(server, "fake-model", lora=both) == "[code.1*2] hello"
    assert await said(server, "math", lora=both[:1]) == "hello"
    for fields, status in (
        ({"lora": [{"id": ids["math"], "scale": 1}, both[1]]}, 400),
        ({"model": "math", "lora": both}, 400),
        ({"model": "math", "lora": both, "lora_scale": 1}, 400),
        ({"lora": [{"id": 77, "scale": 1}]}, 404),
        ({"lora": [{"id": ids["math"]}]}, 400),
        ({"lora": both[:1] * 5000}, 400),
    ):
        await refused(server, "/v1/completions", {**PLAIN, **fields}, status)


async def test_the_list_says_how_adapters_stand(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    path = adapter(rank=16)
    await load(server, path, description="sums", pinned=True)
    for name in ("b", "c"):
        await load(server, adapter(name), name)
    server.engine.hold()
    writer = await server.send_and_hold("/v1/completions", {**PLAIN, "model": "math"})
    await server.engine.wait_for(lambda: server.engine.num_open == 1)
    answer = await listed(server)
    assert (answer["object"], answer["max_loras"], answer["slots_in_use"]) == ("list", 2, 2)
    assert answer["max_lora_rank"] == server.engine.model.max_lora_rank
    entry = answer["data"][0]
    loaded_at = entry.pop("loaded_at")
    assert loaded_at > 1_600_000_000
    assert entry == {
        "name": "math", "path": str(path), "format": "huggingface", "rank": 16, "tier": "slot", "requests_running": 1,
        "requests_waiting": 0, "memory_bytes": 16000, "id": 1, "generation": 1, "base_model": "fake-model",
        "description": "sums", "pinned": True,
    }  # fmt: skip
    assert [one["tier"] for one in answer["data"]] == ["slot", "slot", "host"]
    writer.close()


async def test_loading_in_place_makes_a_new_generation_and_only_then(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    path = adapter()
    for _ in range(2):
        await load(server, path)
    assert await said(server, "math") == "[math.1*1] hello"
    changed = adapter("other", rank=4)
    error = await refused(server, LOAD, {"lora_name": "math", "lora_path": str(changed)})
    assert error["type"] == "InvalidUserInput"
    assert "already been loaded" in error["message"]
    await load(server, changed, load_inplace=True)
    assert await said(server, "math") == "[math.2*1] hello"


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ({}, 400, "InvalidUserInput"),
        ({"lora_name": "x"}, 400, "InvalidUserInput"),
        ({"lora_path": "/"}, 400, "InvalidUserInput"),
        ({"lora_name": "x", "lora_path": "hf://org/adapter"}, 400, "InvalidUserInput"),
        ({"lora_name": "x", "lora_path": "/"}, 400, "InvalidUserInput"),
        ({"lora_name": "fake-model", "lora_path": "/"}, 400, "InvalidUserInput"),
        ({"lora_name": "x", "lora_path": "/no/such/folder"}, 404, "NotFoundError"),
        ({"lora_name": "x", "lora_path": "a\0b"}, 404, "NotFoundError"),
        ({"lora_name": "x", "lora_path": "~nobody-of-this-name/x"}, 404, "NotFoundError"),
        ({"lora_name": "x", "lora_path": "y" * 5000}, 400, "Bad Request"),
        ({"lora_name": "x", "lora_path": "y" * 4000}, 404, "NotFoundError"),
        ({"lora_name": " x", "lora_path": "/"}, 400, "InvalidUserInput"),
        ({"lora_name": "x", "lora_path": "/", "base_model_name": "y" * 5000}, 400, "Bad Request"),
        ({"lora_name": 3, "lora_path": "/"}, 400, "Bad Request"),
        ({"lora_name": "x", "lora_path": "/", "lora_format": "zip"}, 400, "Bad Request"),
    ],
)
async def test_bad_requests_to_load_are_refused_with_the_types_of_vllm(
    serve_adapters, body: dict[str, Any], status: int, kind: str
) -> None:
    server = await serve_adapters()
    error = await refused(server, LOAD, body, status)
    assert error["type"] == kind
    assert len(error["message"]) < 500
    assert (await listed(server))["data"] == []


async def test_unloading_goes_by_name_or_id_and_refuses_what_is_not_there(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    for body, status in (({}, 400), ({"lora_name": "code"}, 404), ({"lora_name": "math", "lora_int_id": 9}, 404)):
        await refused(server, UNLOAD, body, status)
    assert (await server.http.post(UNLOAD, json={"lora_int_id": 1})).status_code == 200
    await refused(server, UNLOAD, {"lora_int_id": 1}, 404)
    await refused(server, "/v1/completions", {**PLAIN, "model": "math"}, 404)


async def test_an_open_stream_outlives_its_adapter(serve_adapters, adapter) -> None:
    server = await serve_adapters()
    await load(server, adapter())
    server.engine.hold()
    stream = await server.openai(is_strict=False).completions.create(model="math", prompt="hello", stream=True)
    assert (await server.http.post(UNLOAD, json={"lora_name": "math"})).status_code == 200
    server.engine.release()
    text = "".join([choice.text async for chunk in stream for choice in chunk.choices])
    assert text == "[math.1*1] hello"


@pytest.mark.promise("LORA-API-2")
async def test_loading_is_refused_with_the_switch_unless_the_server_allows_it(serve_adapters, adapter) -> None:
    server = await serve_adapters(allows_updates=False)
    for path in (LOAD, UNLOAD):
        error = await refused(server, path, {"lora_name": "math", "lora_path": str(adapter())}, 403)
        assert "VLLM_ALLOW_RUNTIME_LORA_UPDATING" in error["message"]
    assert (await listed(server))["updates_allowed"] is False


@pytest.mark.promise("LORA-API-2")
async def test_a_server_without_adapters_says_how_to_get_them(server) -> None:
    answer = await listed(server)
    assert (answer["data"], answer["enabled"], answer["max_loras"]) == ([], False, 0)
    assert "--enable-lora" in answer["message"]
    assert "--enable-lora" in (await refused(server, LOAD, {"lora_name": "math", "lora_path": "/"}))["message"]
    await refused(server, "/v1/completions", {**PLAIN, "model": "base_model:math"}, 404)


@pytest.mark.promise("LORA-API-2")
async def test_the_routes_need_the_key(serve) -> None:
    server = await serve(FakeEngineClient(max_loras=1), ServerConfig(api_keys=("secret",)))
    for response in (await server.http.get(LIST), await server.http.post(LOAD, json={})):
        assert response.status_code == 401
        error_of(response)


async def test_listed_adapters_are_there_when_the_server_is_ready(serve_adapters, adapter) -> None:
    modules = (
        LoRAModule("math", str(adapter()), base_model_name="org/base", description="sums"),
        LoRAModule("code", str(adapter("code")), is_loaded_at_start=False),
    )
    server = await serve_adapters(modules=modules)
    answer = await listed(server)
    assert [(one["name"], one["base_model"], one["description"]) for one in answer["data"]] == [
        ("math", "org/base", "sums")
    ]
    assert [one["name"] for one in answer["available"]] == ["code"]
    error = await refused(server, "/v1/completions", {**PLAIN, "model": "base_model:code"}, 404)
    assert "known but not loaded" in error["message"]
    assert (await server.http.post(LOAD, json={"lora_name": "code"})).status_code == 200
    assert await said(server, "code") == "[code.1*1] hello"
    assert (await listed(server))["available"] == []


async def test_a_listed_adapter_that_is_broken_stops_the_start(serve, tmp_path: Path) -> None:
    config = ServerConfig(lora=LoRAServingConfig((LoRAModule("math", str(tmp_path / "none")),)))
    server = await serve(FakeEngineClient(max_loras=1), config)
    with pytest.raises(ConfigError, match=r"The adapter 'math' cannot be loaded: .*none") as caught:
        await server.task
    assert "\n" not in str(caught.value)


async def test_a_listed_adapter_that_is_broken_is_named_while_the_model_still_loads(serve, tmp_path: Path) -> None:
    config = ServerConfig(lora=LoRAServingConfig((LoRAModule("math", str(tmp_path / "none")),)))
    server = await serve(FakeEngineClient(max_loras=1, ready_on_start=False), config)
    with pytest.raises(ConfigError, match="The adapter 'math' cannot be loaded"):
        await server.task


async def test_a_signal_while_adapters_load_ends_the_server_without_an_error(serve, adapter) -> None:
    class SlowEngine(FakeEngineClient):
        stopped = asyncio.Event()

        async def load_adapter(self, *_: Any, **__: Any) -> AdapterInfo:
            await self.stopped.wait()
            raise EngineDeadError("The engine has been shut down.")

        async def shutdown(self, timeout_s: float = 0.0) -> None:
            self.stopped.set()
            await asyncio.sleep(0)
            await super().shutdown(timeout_s)

    config = ServerConfig(lora=LoRAServingConfig((LoRAModule("math", str(adapter())),)))
    server = await serve(SlowEngine(max_loras=1), config)
    server.process.handle_signal()
    await server.task


@pytest.mark.promise("LORA-API-3")
async def test_a_watched_folder_is_served_from_the_start_and_followed(
    serve_adapters, adapter, clock, tmp_path: Path
) -> None:
    adapter("math")
    server = await serve_adapters(clock, folder=tmp_path, refresh_s=5.0)
    assert [one["name"] for one in (await listed(server))["data"]] == ["math"]
    adapter("code")
    await clock.advance(5.0)
    await clock.advance(5.0)
    await clock.advance(0.0)  # returns when the look that came before has ended
    assert [one["name"] for one in (await listed(server))["data"]] == ["math", "code"]
    os.rename(tmp_path / "math", tmp_path / ".math")
    await clock.advance(5.0)
    await clock.advance(0.0)
    assert [one["name"] for one in (await listed(server))["data"]] == ["code"]


@pytest.mark.promise("LORA-API-4")
async def test_figures_per_adapter_come_and_go_with_it(serve, adapter) -> None:
    server = await serve(FakeEngineClient(max_loras=2), ServerConfig(lora=LoRAServingConfig(allows_updates=True)))
    await load(server, adapter(rank=8))
    assert await server.figure('vllm:lora_adapters{engine="0",model_name="fake-model",tier="slot"}') == 1
    assert await server.figure('vllm:lora_adapter_bytes{engine="0",model_name="fake-model",tier="slot"}') == 8000
    server.engine.hold()
    writer = await server.send_and_hold("/v1/completions", {**PLAIN, "model": "math"})
    await server.engine.wait_for(lambda: server.engine.num_open == 1)
    info = 'vllm:lora_requests_info{max_lora="2",running_lora_adapters="math",waiting_lora_adapters=""}'
    assert await server.figure(info) > 1_600_000_000
    writer.close()
