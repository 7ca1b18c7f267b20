"""`--strict-params`: a request with a field that nothing reads is refused."""

from __future__ import annotations

import pytest

from tests.api.refusals import CHAT, PLAIN
from vllm_mxext.config.server import ServerConfig

pytestmark = pytest.mark.promise("PAIN-22")


async def test_strict_params_refuse_what_nothing_reads_pain_22(serve):
    server = await serve(config=ServerConfig(refuses_unknown_fields=True))
    for path, body in (("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)):
        response = await server.http.post(path, json=body | {"temprature": 0.5})
        error = response.json()["error"]
        assert (response.status_code, error["param"]) == (400, "temprature")
        assert "did you mean `temperature`" in error["message"]
        assert (await server.http.post(path, json=body | {"x" * 3_000_000: 1})).json()["error"]["param"] == "x" * 100
        known = {"temperature": 0.5, "user": "u", "suffix" if path == "/v1/completions" else "audio": None}
        assert (await server.http.post(path, json=body | known)).status_code == 200
    hints = {"store": True, "metadata": {}, "service_tier": "auto", "prompt_cache_key": "k", "safety_identifier": "s"}
    assert (await server.http.post("/v1/chat/completions", json=CHAT | hints)).status_code == 200
