"""schemathesis over our own description: no server error, and no status or type that is not described.

schemathesis makes about 4,800 cases of its own, at the bounds of all fields. `TEST_SCHEMA_EXAMPLES=700` adds about
3,000 at random; by default there are six for each route with parameters.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import content_type_conformance, status_code_conformance

from tests.api.server_thread import ServerThread
from vllm_mxext.config.server import ServerConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.server.app import create_app

pytestmark = pytest.mark.promise("API-9")

NUM_EXAMPLES = int(os.environ.get("TEST_SCHEMA_EXAMPLES", "6"))
CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance]

schema = schemathesis.openapi.from_dict(create_app(FakeEngineClient(), ServerConfig()).openapi())


@pytest.fixture(scope="module")
def served(record_testsuite_property: Callable[[str, object], None]) -> Iterator[ServerThread]:
    with ServerThread() as server:
        yield server
    record_testsuite_property("schema_cases", server.num_cases)
    assert server.num_cases >= NUM_EXAMPLES
    assert server.engine.num_open == 0


@pytest.fixture(scope="module")
def session() -> Iterator[requests.Session]:
    """One connection for all cases."""
    with requests.Session() as session:
        session.trust_env = False
        yield session


@schema.parametrize()
@settings(
    max_examples=NUM_EXAMPLES,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
    derandomize=True,
    database=None,
)
def test_no_case_brings_a_server_error_or_an_undescribed_answer(
    case: schemathesis.Case, served: ServerThread, session: requests.Session
) -> None:
    served.num_cases += 1
    case.call_and_validate(base_url=served.url, session=session, checks=CHECKS, timeout=120)
