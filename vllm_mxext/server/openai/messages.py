"""Conversations: from checked messages to the prompt text that the chat template makes of them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from vllm_mxext.errors import UnsupportedFeatureError
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.protocol import TemplateFields
from vllm_mxext.server.openai.tool_protocol import Tool


async def render_conversation(
    context: ServerContext, request: TemplateFields, tools: Sequence[Tool] | None = None
) -> str:
    """Returns the prompt text.

    Args:
        context: the server's parts.
        request: the conversation.
        tools: what the template shows of the request's tools.

    Raises:
        InvalidRequestError: the template refused the conversation.
        UnsupportedFeatureError: a part is not text, or the request brings a template and is not trusted to.
    """
    if request.chat_template and not context.config.trust_request_chat_template:
        raise UnsupportedFeatureError(
            "This server does not take chat templates from requests; leave `chat_template` out, or start the server "
            "with --trust-request-chat-template.",
            param="chat_template",
        )
    render = partial(
        context.client.tokenizer.apply_chat_template,
        [message.for_template() for message in request.messages],
        add_generation_prompt=request.begins_answer,
        continue_final_message=bool(request.continue_final_message),
        chat_template=request.chat_template or None,
        template_kwargs=_template_kwargs(request, tools),
    )
    return await context.run_in_thread(render)


def _template_kwargs(request: TemplateFields, tools: Sequence[Tool] | None) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    if tools:
        variables["tools"] = [tool.model_dump(exclude_none=True) for tool in tools]
    if request.documents is not None:
        variables["documents"] = request.documents
    if request.reasoning_effort is not None:
        variables["reasoning_effort"] = request.reasoning_effort
        variables["enable_thinking"] = request.reasoning_effort != "none"
    return variables | (request.chat_template_kwargs or {})
