"""From a prompt's text to its tokens."""

from __future__ import annotations

from vllm_mxext.tokenizer.interface import Tokenizer


def encode_prompt(tokenizer: Tokenizer, text: str, *, add_special_tokens: bool) -> list[int]:
    """Tokenizes a prompt; a text that begins with BOS, as rendered chats do, does not get another one."""
    token_ids = tokenizer.encode(text, add_special_tokens=add_special_tokens)
    bos = tokenizer.bos_token_id
    if add_special_tokens and bos is not None and token_ids[:2] == [bos, bos]:
        return token_ids[1:] if text.startswith(tokenizer.token_text(bos)) else token_ids
    return token_ids
