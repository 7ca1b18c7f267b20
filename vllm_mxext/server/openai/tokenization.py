"""Serves `POST /tokenize` and `POST /detokenize`."""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.messages import render_conversation
from vllm_mxext.server.openai.protocol import DetokenizeRequest, TokenizeChatRequest, TokenizeTextRequest
from vllm_mxext.tokenizer.prompt_tokens import encode_prompt


async def tokenize(context: ServerContext, request: TokenizeTextRequest | TokenizeChatRequest) -> dict[str, Any]:
    """Returns the tokens that a text or a conversation would be as a prompt.

    Raises:
        RequestError: the request was refused.
    """
    context.served_name(request.model)
    tokenizer = context.client.tokenizer
    if isinstance(request, TokenizeTextRequest):
        text, adds_special_tokens = request.prompt, request.add_special_tokens is not False
    else:
        text = await render_conversation(context, request, request.tools)
        adds_special_tokens = bool(request.add_special_tokens)
    tokens = await context.run_in_thread(
        partial(encode_prompt, tokenizer, text, add_special_tokens=adds_special_tokens)
    )
    token_strs = None
    if request.return_token_strs:  # off the event loop: a token at a time, and the text may be large
        token_strs = await context.run_in_thread(lambda: [tokenizer.token_text(token) for token in tokens])
    return {
        "count": len(tokens),
        "max_model_len": context.client.model.max_model_len,
        "tokens": tokens,
        "token_strs": token_strs,
    }


async def detokenize(context: ServerContext, request: DetokenizeRequest) -> dict[str, Any]:
    """Returns the text of tokens, special ones included.

    Raises:
        RequestError: the request was refused.
    """
    context.served_name(request.model)
    decode = partial(context.client.tokenizer.decode, request.tokens, skip_special_tokens=False)
    return {"prompt": await context.run_in_thread(decode)}
