"""schemathesis over our own description: no server error, and no status or type that is not described.

`TEST_SCHEMA_EXAMPLES=700` makes about 3,000 cases; by default there are six for each route with parameters.
"""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator

import pytest
import schemathesis
import uvicorn
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from vllm_mxext.config.server import LoRAServingConfig, ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.server.app import create_app
from vllm_mxext.server.http_protocol import BoundedHttpProtocol
from vllm_mxext.server.listen import open_socket

pytestmark = pytest.mark.promise("API-9")

NUM_EXAMPLES = int(os.environ.get("TEST_SCHEMA_EXAMPLES", "6"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]

schema = schemathesis.openapi.from_dict(create_app(FakeEngineClient(), ServerConfig()).openapi())


class ServerThread:
    """A server on an event loop of its own; signals, which `ServerProcess` handles, are for main threads only."""

    def __init__(self) -> None:
        self.engine = FakeEngineClient(max_loras=2)
        self.num_cases = 0
        self._sock = open_socket(ServerConfig(port=0))
        self.url = f"http://127.0.0.1:{self._sock.getsockname()[1]}"
        lora = LoRAServingConfig(allows_updates=True)
        config = uvicorn.Config(
            create_app(self.engine, ServerConfig(lora=lora)),
            http=BoundedHttpProtocol,
            log_config=None,
            log_level="warning",
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()))

    def __enter__(self) -> ServerThread:
        self._sock.listen()
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._server.should_exit = True
        self._thread.join()

    async def _serve(self) -> None:
        await self.engine.start()
        await self._server.serve(sockets=[self._sock])
        await self.engine.shutdown()


@pytest.fixture(scope="module")
def served(record_testsuite_property: Callable[[str, object], None]) -> Iterator[ServerThread]:
    with ServerThread() as server:
        yield server
    record_testsuite_property("schema_cases", server.num_cases)
    assert server.num_cases >= NUM_EXAMPLES
    assert server.engine.num_open == 0


@schema.parametrize()
@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_no_case_brings_a_server_error_or_an_undescribed_answer(case: schemathesis.Case, served: ServerThread) -> None:
    served.num_cases += 1
    case.call_and_validate(base_url=served.url, checks=CHECKS, timeout=120)
