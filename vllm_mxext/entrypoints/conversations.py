"""Conversations offline: one or several of them to prompts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from vllm_mxext.tokenizer.interface import Tokenizer

Conversation = Sequence[Mapping[str, Any]]
"""Messages with `role` and `content`, and whatever else the chat template reads."""


def render_conversations(
    tokenizer: Tokenizer,
    messages: Conversation | Sequence[Conversation],
    tools: Sequence[Mapping[str, Any]] | None,
    chat_template_kwargs: Mapping[str, Any] | None,
    **template: Any,
) -> list[str]:
    """Returns the prompt texts of one or several conversations.

    Args:
        tokenizer: it has the templates.
        messages: one conversation, or a list of them.
        tools: tool descriptions that the template shows to the model.
        chat_template_kwargs: further variables of the template.
        **template: further arguments of `Tokenizer.apply_chat_template()`.

    Raises:
        InvalidRequestError: the template refused a conversation.
        UnsupportedFeatureError: there is no chat template.
    """
    conversations: Any = [messages] if messages and isinstance(messages[0], Mapping) else messages
    variables = {**({"tools": list(tools)} if tools else {}), **(chat_template_kwargs or {})}
    return [
        tokenizer.apply_chat_template(conversation, template_kwargs=variables, **template)
        for conversation in conversations
    ]
