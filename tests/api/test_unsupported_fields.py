"""Fields that this version does not offer are refused unless they mean what happens anyway."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.refusals import CHAT, PLAIN, refused
from vllm_mxext.server.openai.protocol import ChatCompletionRequest, CompletionRequest
from vllm_mxext.server.openai.unsupported import CHAT_FIELDS, COMPLETION_FIELDS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.promise("API-8")]

NON_NEUTRAL: dict[str, Any] = {
    "modalities": ["audio"],
    "return_prompt_text": True,
}
NEUTRAL: dict[str, list[Any]] = {
    "modalities": [["text"]],
}
ENDPOINT_FIELDS = [("/v1/chat/completions", CHAT, field) for field in sorted(CHAT_FIELDS)] + [
    ("/v1/completions", PLAIN, field) for field in sorted(COMPLETION_FIELDS)
]


@pytest.mark.parametrize(("path", "body", "field"), ENDPOINT_FIELDS)
async def test_known_fields_that_cannot_be_honoured_are_refused_by_name(shared_server, path, body, field):
    error = await refused(shared_server, path, body | {field: NON_NEUTRAL.get(field, 7)})

    assert error["param"] == field
    assert f"`{field}`" in error["message"]
    assert "leave" in error["message"]


@pytest.mark.parametrize(("path", "body", "field"), ENDPOINT_FIELDS)
async def test_neutral_values_of_those_fields_are_accepted(shared_server, path, body, field):
    for value in (None, [], {}, "", *NEUTRAL.get(field, [])):
        response = await shared_server.http.post(path, json=body | {field: value})
        assert response.status_code == 200, (field, value, response.text)


async def test_fields_that_only_openai_reads_and_unknown_ones_are_accepted(shared_server):
    extras = {
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "prompt_cache_key": "k",
        "whatever": [1], "best_of": 1,
    }  # fmt: skip
    assert (await shared_server.http.post("/v1/chat/completions", json=CHAT | extras)).status_code == 200


async def test_null_means_the_default_for_every_field(shared_server):
    for path, body, model in (
        ("/v1/chat/completions", CHAT, ChatCompletionRequest),
        ("/v1/completions", PLAIN, CompletionRequest),
    ):
        nulls = dict.fromkeys(model.model_fields)
        response = await shared_server.http.post(path, json=nulls | body)
        assert response.status_code == 200, response.text
