"""Conversations: from checked messages to the prompt text that the chat template makes of them."""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm_mxext.errors import UnsupportedFeatureError
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.protocol import TemplateFields


async def render_conversation(context: ServerContext, request: TemplateFields) -> str:
    """Returns the prompt text.

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
        [message.model_dump(exclude_none=True) for message in request.messages],
        add_generation_prompt=request.begins_answer,
        continue_final_message=bool(request.continue_final_message),
        chat_template=request.chat_template or None,
        template_kwargs=_template_kwargs(request),
    )
    return await context.run_in_thread(render)


def _template_kwargs(request: TemplateFields) -> dict[str, Any]:
    variables: dict[str, Any] = {}
    if request.documents is not None:
        variables["documents"] = request.documents
    if request.reasoning_effort is not None:
        variables["reasoning_effort"] = request.reasoning_effort
        variables["enable_thinking"] = request.reasoning_effort != "none"
    return variables | (request.chat_template_kwargs or {})
