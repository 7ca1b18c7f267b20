"""Health, readiness while loading, draining and stalling, version, metrics and documentation."""

from __future__ import annotations

from typing import Any

import pytest

from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.client import EnginePhase, EngineStatus

ALWAYS_OPEN = {"/v1/health/live", "/metrics", "/v1/version", "/v1/hub/downloads"}


@pytest.mark.promise("OPS-2")
async def test_a_ready_server_says_so(server):
    for path in ("/health", "/v1/health/ready"):
        response = await server.http.get(path)
        assert (response.status_code, response.json()["phase"]) == (200, "ready")
    assert (await server.http.get("/v1/health/live")).json() == {"status": "live", "phase": "ready"}


@pytest.mark.promise("PAIN-1")
async def test_pain_1_health_tells_how_long_start_up_took(server):
    seconds = (("loading", 0.5), ("warming up", 0.25))
    server.engine.set_status(EngineStatus(EnginePhase.READY, 1.0, phase_seconds=seconds))

    report = (await server.http.get("/health")).json()

    assert report["phase_seconds"] == {"loading": 0.5, "warming up": 0.25}


@pytest.mark.promise("OPS-1")
@pytest.mark.parametrize(
    ("status", "message"),
    [
        (EngineStatus(EnginePhase.STARTING), "The model is loading: starting the engine, 0%"),
        (EngineStatus(EnginePhase.LOADING, 0.43), "The model is loading: loading weights, 43%"),
        (EngineStatus(EnginePhase.LOADING, 0.5, "reading shard 2."), "The model is loading: reading shard 2, 50%"),
        (EngineStatus(EnginePhase.WARMING_UP, 0.95), "The model is loading: warming up, 95%"),
    ],
)  # fmt: skip
async def test_until_the_model_is_loaded_everything_but_a_few_is_503(serve, status, message):
    server = await serve(FakeEngineClient(ready_on_start=False))
    server.engine.set_status(status)

    for method, path in [*server.routes(), ("GET", "/nope")]:
        response = await server.http.request(method, path)
        if path in ALWAYS_OPEN:
            assert response.status_code == 200, path
        else:
            assert response.status_code == 503, path
            assert response.headers["retry-after"]
            assert response.json()["error"] == {
                "message": message, "type": "ServiceUnavailableError", "param": None, "code": 503,
            }  # fmt: skip


@pytest.mark.promise("PAIN-1")
async def test_pain_1_requests_are_served_as_soon_as_the_model_is_loaded(serve):
    server = await serve(FakeEngineClient(ready_on_start=False))
    assert (await server.http.get("/health")).status_code == 503

    server.engine.set_status(EngineStatus(EnginePhase.READY, 1.0))

    assert (await server.http.get("/health")).status_code == 200
    assert (await server.http.post("/v1/completions", json={"prompt": "x"})).status_code == 200


async def test_while_draining_new_requests_are_503_and_the_process_lives(server):
    server.engine.begin_drain()

    for path in ("/health", "/v1/health/ready", "/v1/models"):
        response = await server.http.get(path)
        assert response.status_code == 503
        assert "shutting down" in response.json()["error"]["message"]
    assert (await server.http.get("/v1/health/live")).status_code == 200


async def test_while_the_engine_restarts_requests_are_taken_but_others_are_preferred(server):
    server.engine.set_status(EngineStatus(EnginePhase.RESTARTING, detail="killed by signal 9"))

    assert (await server.http.get("/v1/health/ready")).status_code == 503
    health = await server.http.get("/health")
    assert (health.status_code, health.json()["status"]) == (200, "waiting")
    assert (await server.http.post("/v1/completions", json={"prompt": "x"})).status_code == 200


@pytest.mark.promise("OPS-2")
async def test_a_stalled_engine_is_not_ready(server):
    server.engine.set_status(EngineStatus(EnginePhase.STALLED, detail="no step for 120 s"))

    response = await server.http.get("/health")

    assert response.status_code == 503
    assert response.json()["error"]["message"] == "The engine has stalled: no step for 120 s"


async def test_an_engine_that_does_not_answer_is_not_ready(serve):
    server = await serve(config=ServerConfig(health_timeout_s=0.01))
    server.engine.is_frozen = True

    for path in ("/health", "/v1/health/ready"):
        response = await server.http.get(path)
        assert response.status_code == 503
        assert "has not answered" in response.json()["error"]["message"]
    assert (await server.http.get("/v1/health/live")).status_code == 200


async def test_a_dead_engine_is_not_live(server):
    server.engine.die("cuda error")

    response = await server.http.get("/v1/health/live")

    assert response.status_code == 503
    assert response.json()["error"]["message"] == "The engine has failed for good: cuda error"


@pytest.mark.promise("API-3")
async def test_the_version_is_told(server):
    from vllm_mxext.server.context import package_version

    assert (await server.http.get("/version")).json() == {"version": package_version()}


@pytest.mark.promise("API-3")
async def test_documentation_pages_are_there_and_describe_every_body(server):
    for path in ("/docs", "/redoc"):
        assert "text/html" in (await server.http.get(path)).headers["content-type"]
    description = (await server.http.get("/openapi.json")).json()
    bodies = [
        operation["requestBody"]["content"]["application/json"]["schema"]
        for methods in description["paths"].values()
        for method, operation in methods.items()
        if method == "post"
    ]
    references = [ref for body in bodies for ref in ([body] if "$ref" in body else body["oneOf"])]
    names = {reference["$ref"].rsplit("/", 1)[1] for reference in references}
    assert {"ChatCompletionRequest", "CompletionRequest", "DetokenizeRequest"} <= names
    assert names <= set(description["components"]["schemas"])


async def test_documentation_can_be_switched_off(serve):
    server = await serve(config=ServerConfig(is_docs_enabled=False))

    for path in ("/docs", "/redoc", "/openapi.json"):
        assert (await server.http.get(path)).status_code == 404


async def test_http_requests_are_counted_by_route_method_and_status(server):
    await server.http.get("/v1/models/fake-model")
    await server.http.get("/v1/models/nope")
    await server.http.get("/random/path")
    await server.http.post("/v1/completions", json={"prompt": "x"})

    figures = {
        '{handler="/v1/models/{model_id:path}",method="GET",status="200"}': 1,
        '{handler="/v1/models/{model_id:path}",method="GET",status="404"}': 1,
        '{handler="unmatched",method="GET",status="404"}': 1,
        '{handler="/v1/completions",method="POST",status="200"}': 1,
    }
    for labels, count in figures.items():
        assert await server.figure("http_requests_total" + labels) == count
    assert await server.figure('http_request_duration_seconds_count{handler="/v1/completions",method="POST"}') == 1


async def test_what_a_guard_refuses_is_counted_under_the_route_it_was_for(serve):
    server = await serve(config=ServerConfig(api_keys=("key",), metrics_need_key=False))
    await server.http.post("/v1/completions", json={"prompt": "x"})
    await server.http.get("/docs")
    await server.http.get("/random/path")

    for handler, method in (("/v1/completions", "POST"), ("/docs", "GET"), ("unmatched", "GET")):
        labels = f'{{handler="{handler}",method="{method}",status="401"}}'
        assert await server.figure("http_requests_total" + labels) == 1


async def test_metrics_come_in_the_format_that_is_asked_for(server):
    plain = await server.http.get("/metrics")
    openmetrics = await server.http.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})

    assert plain.headers["content-type"].startswith("text/plain")
    assert "vllm:num_requests_running" in plain.text
    assert openmetrics.headers["content-type"].startswith("application/openmetrics-text")
    assert openmetrics.text.endswith("# EOF\n")


async def tokens_of(server: Any, body: dict[str, Any]) -> dict[str, Any]:
    response = await server.http.post("/tokenize", json=body)
    assert response.status_code == 200
    result: dict[str, Any] = response.json()
    return result


@pytest.mark.promise("API-3")
async def test_a_text_is_tokenized_with_and_without_special_tokens(server):
    assert await tokens_of(server, {"prompt": "hi"}) == {
        "count": 3, "max_model_len": 4096, "tokens": [256, 104, 105], "token_strs": None,
    }  # fmt: skip
    assert (await tokens_of(server, {"prompt": "hi", "add_special_tokens": False}))["tokens"] == [104, 105]


async def test_token_texts_are_returned_when_asked_for(server):
    body = await tokens_of(server, {"prompt": "hi", "return_token_strs": True})

    assert body["token_strs"] == ["<s>", "h", "i"]


async def test_a_conversation_is_tokenized_as_chat_would(server):
    messages = [{"role": "user", "content": "hi"}]
    tokens = (await tokens_of(server, {"messages": messages}))["tokens"]
    await server.openai().chat.completions.create(model="fake-model", messages=messages)

    assert tokens == server.engine.tokenizer.encode(server.engine.requests[0].prompt.text, add_special_tokens=False)
    bare = await tokens_of(server, {"messages": messages, "add_generation_prompt": False, "add_special_tokens": True})
    assert bare["tokens"] == [256, *tokens[:-1]]


async def test_tokens_are_turned_back_into_the_text_with_its_special_tokens(server):
    tokens = (await tokens_of(server, {"prompt": "héllo 你好"}))["tokens"]

    response = await server.http.post("/detokenize", json={"tokens": tokens})

    assert response.json() == {"prompt": "<s>héllo 你好"}


async def test_a_request_s_template_is_used_once_it_is_trusted(serve):
    server = await serve(config=ServerConfig(trust_request_chat_template=True))
    body = {
        "messages": [{"role": "user", "content": "hi"}],
        "chat_template": "{{ messages[0].content }}-{{ tone }}",
        "chat_template_kwargs": {"tone": "kind"},
    }

    assert (await server.http.post("/v1/chat/completions", json=body)).status_code == 200
    assert server.engine.requests[0].prompt.text == "hi-kind"


async def test_the_response_role_can_be_configured(serve):
    server = await serve(config=ServerConfig(response_role="narrator"))

    body = (
        await server.http.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "x"}]})
    ).json()

    assert body["choices"][0]["message"]["role"] == "narrator"


@pytest.mark.parametrize(
    "path",
    ["/health", "/v1/health/live", "/v1/health/ready", "/version", "/metrics", "/v1/models", "/v1/models/fake-model"],
)
async def test_head_answers_as_get_does_without_a_body(server, path):
    get, head = await server.http.get(path), await server.http.head(path)
    assert (head.status_code, head.headers["content-type"]) == (get.status_code, get.headers["content-type"])
    assert head.content == b""
