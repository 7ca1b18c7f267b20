"""Serves `/v1/chat/completions/render` and `/v1/completions/render`: the prompts that requests would have."""

from __future__ import annotations

from functools import partial
from typing import Any

from vllm_mxext.errors import UnsupportedFeatureError
from vllm_mxext.requests import Prompt, TextPrompt, TokensPrompt
from vllm_mxext.server.context import ServerContext
from vllm_mxext.server.openai.completions import completion_prompts
from vllm_mxext.server.openai.messages import render_conversation
from vllm_mxext.server.openai.output_plan import plan_output
from vllm_mxext.server.openai.protocol import ChatCompletionRequest, CompletionRequest, GenerationRequest
from vllm_mxext.tokenizer.prompt_tokens import encode_prompt


async def render_chat(context: ServerContext, request: ChatCompletionRequest) -> dict[str, Any]:
    """Returns the prompt of a conversation.

    Raises:
        RequestError: the request was refused.
    """
    _check(context, request)
    plan = plan_output(request, context.parsers)
    text = await render_conversation(context, request, plan.tools)
    prompt = TextPrompt(text, add_special_tokens=bool(request.add_special_tokens))
    return {"model": context.served_name(request.model), **await _rendered(context, prompt)}


async def render_completion(context: ServerContext, request: CompletionRequest) -> dict[str, Any]:
    """Returns the prompts of a completion.

    Raises:
        RequestError: the request was refused.
    """
    _check(context, request)
    prompts = [await _rendered(context, prompt) for prompt in completion_prompts(request)]
    return {"model": context.served_name(request.model), "prompts": prompts}


def _check(context: ServerContext, request: GenerationRequest) -> None:
    context.served_name(request.model)
    if request.truncate_prompt_tokens is not None:
        raise UnsupportedFeatureError(
            "Rendered prompts are not truncated; leave truncate_prompt_tokens out.", param="truncate_prompt_tokens"
        )


async def _rendered(context: ServerContext, prompt: Prompt) -> dict[str, Any]:
    tokenizer = context.client.tokenizer
    if isinstance(prompt, TokensPrompt):
        token_ids = list(prompt.token_ids)
        text = await context.run_in_thread(partial(tokenizer.decode, token_ids, skip_special_tokens=False))
    else:
        text = prompt.text
        encode = partial(encode_prompt, tokenizer, text, add_special_tokens=prompt.add_special_tokens)
        token_ids = await context.run_in_thread(encode)
    return {"prompt": text, "prompt_token_ids": token_ids, "count": len(token_ids)}
