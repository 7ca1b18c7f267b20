"""`timeout_ms` and llama.cpp's `t_max_predict_ms` over HTTP."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.conftest import RunningServer, Serve
from tests.api.refusals import CHAT, PLAIN, error_of, refused
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.errors import DeadlineExceededError

pytestmark = pytest.mark.promise("TIME-1")


class OutOfTime(FakeEngineClient):
    """Ends every request as an engine does whose time for it is over before the first token."""

    async def generate(self, request: Any) -> Any:
        await super().generate(request)
        self._end(self._open[request.request_id], DeadlineExceededError("The request had no output in time."))
        return self._stream_of_error()

    async def _stream_of_error(self) -> Any:
        raise DeadlineExceededError("The request had no output in time.")
        yield


@pytest.mark.parametrize(("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)])
async def test_the_limits_reach_the_engine_in_seconds(server: RunningServer, path: str, body: dict[str, Any]) -> None:
    for limits in ({"timeout_ms": 1500, "t_max_predict_ms": 250.5}, {"t_max_predict_ms": 0}, {"timeout_ms": None}):
        assert (await server.http.post(path, json=body | limits)).status_code == 200
    found = [(request.timeout_s, request.max_generation_s) for request in server.engine.requests]
    assert found == [(1.5, 0.2505), (None, None), (None, None)]


@pytest.mark.parametrize("value", [0, -5, 1e300, "soon"])
async def test_a_limit_that_is_no_positive_time_is_refused(server: RunningServer, value: Any) -> None:
    assert (await refused(server, "/v1/completions", PLAIN | {"timeout_ms": value}))["param"] == "timeout_ms"
    assert server.engine.num_open == 0


async def test_no_output_in_time_is_504(serve: Serve) -> None:
    server = await serve(OutOfTime())
    response = await server.http.post("/v1/completions", json=PLAIN | {"timeout_ms": 5})
    assert response.status_code == 504
    assert (error_of(response)["reason"], error_of(response)["param"]) == ("deadline_exceeded", "timeout_ms")
    events = await server.stream_events("/v1/completions", PLAIN | {"timeout_ms": 5})
    assert '"code":504' in events[-2]
    assert events[-1] == "data: [DONE]"
