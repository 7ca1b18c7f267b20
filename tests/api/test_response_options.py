"""What the operator adds to every response, and to the log of outputs."""

from __future__ import annotations

from typing import Any

import pytest

from tests.api.refusals import CHAT
from tests.api.talking import (
    HELLO,
)
from vllm_mxext.config.server import ServerConfig

pytestmark = pytest.mark.promise("PAIN-21")


async def test_a_server_can_always_report_usage_and_name_tokens_by_id(serve):
    server = await serve(config=ServerConfig(always_includes_usage=True, returns_tokens_as_ids=True))
    request: Any = {"model": "fake-model", "messages": HELLO, "logprobs": True}
    chunks = [chunk async for chunk in await server.openai().chat.completions.create(**request, stream=True)]
    asked = await server.openai().chat.completions.create(**request, extra_body={"return_tokens_as_token_ids": False})
    text = await server.openai().completions.create(model="fake-model", prompt="h", logprobs=1)

    assert chunks[-1].usage.completion_tokens == 6
    assert chunks[1].choices[0].logprobs.content[0].token == f"token_id:{ord('h')}"
    assert asked.choices[0].logprobs.content[0].token == "h"
    assert text.choices[0].logprobs.tokens[0] == f"token_id:{ord('h')}"


@pytest.mark.parametrize("is_streamed", [False, True])
async def test_outputs_are_logged_when_asked_for_and_no_longer_than_allowed(serve, caplog, is_streamed):
    server = await serve(config=ServerConfig(log_outputs=True, max_log_len=3))
    with caplog.at_level("INFO"):
        await server.http.post("/v1/chat/completions", json=CHAT | {"stream": is_streamed})

    [line] = [record.getMessage() for record in caplog.records if "Output 0" in record.getMessage()]
    assert "(stop): 'hel'" in line
