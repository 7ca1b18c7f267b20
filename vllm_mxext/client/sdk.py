"""`VllmMxextClient`: the documented SDK, which is `VllmClient` with the address as its first argument."""

from __future__ import annotations

from typing import Any

from vllm_mxext.client.vllm_client import VllmClient

DEFAULT_URL = "http://0.0.0.0:8000"


class VllmMxextClient(VllmClient):
    """Loads adapters and chats with them; `load_lora()` and `chat_with_lora()` return the server's JSON.

    Args:
        base_url: the server's URL.
        api_key: presented to it; `$VLLM_API_KEY` by default.
        settings: the others of `ClientSettings`.
    """

    def __init__(self, base_url: str = DEFAULT_URL, api_key: str | None = None, **settings: Any) -> None:
        super().__init__(api_key, base_url, **settings)
