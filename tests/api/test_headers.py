"""Request ids, timing, priority, CORS, and what the log says."""

from __future__ import annotations

import asyncio
import logging

import pytest

from vllm_mxext.config.server import CorsConfig, ServerConfig

PLAIN = {"prompt": "hello"}


@pytest.mark.promise("API-6")
async def test_a_request_id_is_echoed_and_names_the_response(server):
    response = await server.http.post("/v1/completions", json=PLAIN, headers={"X-Request-Id": "my-id/1"})

    assert response.headers["x-request-id"] == "my-id/1"
    assert response.json()["id"] == "cmpl-my-id/1"
    assert server.engine.requests[0].request_id.startswith("cmpl-my-id/1-")


async def test_a_request_id_is_made_when_there_is_none_or_an_unusable_one(server):
    seen = set()
    for headers in ({}, {}, {"X-Request-Id": "x" * 500}, {"X-Request-Id": "two words"}):
        response = await server.http.get("/version", headers=headers)
        seen.add(response.headers["x-request-id"])
        assert len(response.headers["x-request-id"]) == 32

    assert len(seen) == 4


async def test_the_body_can_name_the_request(server):
    response = await server.http.post("/v1/completions", json={**PLAIN, "request_id": "from-body"})

    assert response.json()["id"] == "cmpl-from-body"


async def test_two_open_requests_may_carry_the_same_id(server):
    server.engine.hold()
    asking = [
        asyncio.create_task(server.http.post("/v1/completions", json=PLAIN, headers={"X-Request-Id": "same"}))
        for _ in range(2)
    ]
    await server.engine.wait_for(lambda: server.engine.num_open == 2)
    server.engine.release()

    assert [response.status_code for response in await asyncio.gather(*asking)] == [200, 200]


@pytest.mark.parametrize("path", ["/v1/models", "/nope", "/v1/completions"])
async def test_every_response_tells_its_id_and_processing_time(server, path):
    response = await server.http.get(path)

    assert response.headers["x-request-id"]
    assert int(response.headers["openai-processing-ms"]) >= 0


async def test_the_priority_comes_from_the_body_or_the_header(server):
    await server.http.post("/v1/completions", json={**PLAIN, "priority": 3}, headers={"X-Vllm-Priority": "9"})
    await server.http.post("/v1/completions", json=PLAIN, headers={"X-Vllm-Priority": "-2"})
    await server.http.post("/v1/completions", json=PLAIN)

    assert [request.priority for request in server.engine.requests] == [3, -2, 0]
    refused = await server.http.post("/v1/completions", json=PLAIN, headers={"X-Vllm-Priority": "high"})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "priority")


async def test_the_cache_salt_reaches_the_engine(server):
    await server.http.post("/v1/completions", json={**PLAIN, "cache_salt": "team-a"})

    assert server.engine.requests[0].cache_salt == "team-a"


async def test_browsers_may_ask_from_anywhere_by_default(serve):
    server = await serve(config=ServerConfig(api_keys=("k",)))
    preflight = await server.http.options(
        "/v1/completions",
        headers={"Origin": "https://a.example", "Access-Control-Request-Method": "POST"},
    )
    refused = await server.http.post("/v1/completions", json=PLAIN, headers={"Origin": "https://a.example"})

    assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (200, "*")
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "*"
    assert "X-Request-Id" in refused.headers["access-control-expose-headers"]


async def test_browsers_of_other_origins_are_held_off_when_origins_are_listed(serve):
    server = await serve(config=ServerConfig(cors=CorsConfig(allowed_origins=("https://a.example",))))

    for origin, allowed in (("https://a.example", "https://a.example"), ("https://b.example", None)):
        response = await server.http.get("/v1/models", headers={"Origin": origin})
        assert response.headers.get("access-control-allow-origin") == allowed


async def test_no_cors_header_is_sent_when_cors_is_off(serve):
    server = await serve(config=ServerConfig(cors=CorsConfig(allowed_origins=())))

    response = await server.http.get("/v1/models", headers={"Origin": "https://a.example"})

    assert "access-control-allow-origin" not in response.headers


async def test_the_access_log_has_one_line_per_request(server, caplog):
    with caplog.at_level(logging.INFO, "vllm_mxext.server"):
        await server.http.get("/version")
        await server.http.get("/nope%0aINFO forged")

    lines = [record.getMessage() for record in caplog.records if '"GET ' in record.getMessage()]
    assert len(lines) == 2
    assert '"GET /version" 200 ' in lines[0]
    assert all("\n" not in line for line in lines)


async def test_endpoints_can_be_left_out_of_the_access_log(serve, caplog):
    server = await serve(config=ServerConfig(quiet_endpoints=("/health", "/metrics")))
    with caplog.at_level(logging.INFO, "vllm_mxext.server"):
        await server.http.get("/health")
        await server.http.get("/metrics")
        await server.http.get("/version")

    lines = [record.getMessage() for record in caplog.records if '"GET ' in record.getMessage()]
    assert len(lines) == 1
    assert "/version" in lines[0]


async def test_log_lines_of_a_request_carry_its_id(server, caplog):
    from vllm_mxext.logger import RequestIdFilter

    caplog.handler.addFilter(RequestIdFilter())
    with caplog.at_level(logging.INFO, "vllm_mxext.server"):
        await server.http.get("/version", headers={"X-Request-Id": "abc"})

    assert [record.request_id for record in caplog.records if '"GET ' in record.getMessage()] == ["abc"]


async def test_requests_are_logged_when_asked_for_and_prompts_only_at_debug(serve, caplog):
    server = await serve(config=ServerConfig(log_requests=True, max_log_len=3))
    with caplog.at_level(logging.INFO, "vllm_mxext.server"):
        await server.http.post("/v1/completions", json={"prompt": "confidential"})
    assert "SamplingParams(" in caplog.text
    assert "conf" not in caplog.text

    with caplog.at_level(logging.DEBUG, "vllm_mxext.server"):
        await server.http.post("/v1/completions", json={"prompt": "confidential"})
    assert "'con'" in caplog.text
    assert "conf" not in caplog.text
