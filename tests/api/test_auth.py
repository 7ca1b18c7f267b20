"""API keys guard every route but the health ones."""

from __future__ import annotations

import pytest

from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.client import EnginePhase

pytestmark = pytest.mark.promise("API-5")

OPEN = {"/health", "/v1/health/live", "/v1/health/ready"}
KEYED = ServerConfig(api_keys=("first-key", "second-key"))


def headers_with(name: str, value: str) -> dict[str, str]:
    return {name: value}


async def test_every_route_but_health_needs_a_key(serve):
    server = await serve(config=KEYED)
    routes = server.routes()
    assert {"/v1/chat/completions", "/tokenize", "/metrics", "/docs", "/openapi.json"} <= {path for _, path in routes}

    for method, path in routes:
        response = await server.http.request(method, path)
        if path in OPEN:
            assert response.status_code == 200, path
        else:
            assert response.status_code == 401, path
            assert response.headers["www-authenticate"] == "Bearer"
            error = response.json()["error"]
            assert (error["type"], error["code"]) == ("AuthenticationError", 401)


async def test_every_route_is_reached_with_a_key(serve):
    server = await serve(config=KEYED)
    for method, path in server.routes():
        response = await server.http.request(method, path, headers={"Authorization": "Bearer first-key"})
        assert response.status_code in (200, 400, 404), path


async def test_paths_that_do_not_exist_and_other_methods_need_a_key_too(serve):
    server = await serve(config=KEYED)
    for method, path in (
        ("GET", "/nope"), ("GET", "/"), ("POST", "/v1/nope"), ("GET", "/health/"), ("GET", "//health"),
        ("GET", "/v1/models/../../health/x"), ("OPTIONS", "/v1/completions"), ("GET", "/HEALTH"), ("GET", "/health%2f"),
    ):  # fmt: skip
        assert (await server.http.request(method, path)).status_code == 401, path


@pytest.mark.parametrize(
    "headers",
    [
        headers_with("Authorization", "Bearer first-key"),
        headers_with("authorization", "bearer second-key"),
        headers_with("x-api-key", "first-key"),
        headers_with("api-key", "second-key"),
    ],
)
async def test_each_key_works_in_each_header(serve, headers):
    server = await serve(config=KEYED)

    assert (await server.http.get("/v1/models", headers=headers)).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        headers_with("Authorization", "Bearer"),
        headers_with("Authorization", "first-key"),
        headers_with("Authorization", "Basic first-key"),
        headers_with("Authorization", "Bearer first-key2"),
        headers_with("Authorization", "Bearer first"),
        headers_with("x-api-key", ""),
        headers_with("x-api-key", "first-key,second-key"),
    ],
)
async def test_anything_else_is_401(serve, headers):
    server = await serve(config=KEYED)

    assert (await server.http.get("/v1/models", headers=headers)).status_code == 401


async def test_the_official_client_authenticates(serve):
    server = await serve(config=KEYED)

    models = [model.id async for model in server.openai(api_key="second-key").models.list()]
    assert "fake-model" in models


async def test_metrics_can_be_opened_by_a_switch(serve):
    server = await serve(config=ServerConfig(api_keys=("k",), metrics_need_key=False))

    assert (await server.http.get("/metrics")).status_code == 200
    assert (await server.http.get("/v1/models")).status_code == 401


async def test_without_keys_everybody_is_let_in(server):
    assert (await server.http.get("/v1/models", headers={"Authorization": "Bearer whatever"})).status_code == 200


async def test_a_missing_key_is_told_before_anything_about_the_server_s_state(serve):
    server = await serve(FakeEngineClient(ready_on_start=False), KEYED)
    assert server.engine.status.phase is EnginePhase.LOADING

    assert (await server.http.get("/v1/models")).status_code == 401


async def test_a_proxy_prefix_does_not_open_a_way_around(serve):
    server = await serve(config=ServerConfig(api_keys=("k",), root_path="/api"))

    assert (await server.http.get("/api/v1/models")).status_code == 401
    assert (await server.http.get("/api/health")).status_code == 200
    assert (await server.http.get("/health")).status_code == 200
    assert (await server.http.get("/api/v1/models", headers={"x-api-key": "k"})).status_code == 200
