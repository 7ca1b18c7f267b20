"""`--middleware` names a class or a coroutine function by its import path."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.errors import ConfigError
from vllm_mxext.server.app import create_app

pytestmark = pytest.mark.promise("CONF-4")


class Stamp:
    """Adds a header."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def stamped(message: Any) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-stamp", b"class"))
            await send(message)

        await self._app(scope, receive, stamped)


async def refuse_version(request: Request, call_next: Any) -> Response:
    if request.url.path == "/version":
        return Response("no", 418)
    response: Response = await call_next(request)
    return response


NOT_CALLABLE = 3


async def test_classes_and_functions_surround_the_routes() -> None:
    engine = FakeEngineClient()
    await engine.start()
    app = create_app(engine, ServerConfig(middleware=(f"{__name__}.Stamp", f"{__name__}.refuse_version")))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as client:
        response = await client.get("/version")
        assert (response.status_code, response.headers["x-stamp"]) == (418, "class")
        assert (await client.get("/v1/models")).status_code == 200
    await engine.shutdown()


@pytest.mark.parametrize("path", ["nowhere.Layer", f"{__name__}.NoSuch", f"{__name__}.NOT_CALLABLE", "plain", ""])
def test_what_is_no_middleware_is_refused(path: str) -> None:
    with pytest.raises(ConfigError, match="--middleware"):
        create_app(FakeEngineClient(), ServerConfig(middleware=(path,)))
