"""Token counters: a tokenizer file, or the server's `/tokenize`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import orjson

from vllm_mxext.bench.serve.result import TokenSource
from vllm_mxext.bench.serve.wire import Wire, WireError
from vllm_mxext.errors import ConfigError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


class TokenCounter(Protocol):
    """Counts the tokens of a text, without the special tokens that a model adds around it."""

    source: TokenSource

    async def count(self, text: str) -> int | None:
        """Returns the number of tokens; None if it cannot be determined."""


class FileTokenCounter:
    """Counts with a `tokenizer.json`.

    Args:
        path: the file, or a model's folder.

    Raises:
        ConfigError: it cannot be read.
    """

    source: TokenSource = "tokenizer"

    def __init__(self, path: Path) -> None:
        from tokenizers import Tokenizer  # noqa: PLC0415 - most runs need none

        file = path / "tokenizer.json" if path.is_dir() else path
        try:
            self._tokenizer: Tokenizer = Tokenizer.from_file(str(file))
        except Exception as error:
            raise ConfigError(f"--tokenizer '{path}' is not a tokenizer.json: {error}.") from None

    async def count(self, text: str) -> int | None:
        """Returns the number of tokens."""
        return len(self._tokenizer.encode(text, add_special_tokens=False).ids)


class ServerTokenCounter:
    """Counts with the server's `/tokenize`.

    Args:
        wire: connections to it.
        model: name of the model.
    """

    source: TokenSource = "server"

    def __init__(self, wire: Wire, model: str) -> None:
        self._wire = wire
        self._model = model
        self._is_there = True

    async def count(self, text: str) -> int | None:
        """Returns the number of tokens; None if the server has no `/tokenize`."""
        if not self._is_there:
            return None
        # llama.cpp's server reads `content`, the others `prompt`.
        fields = {"model": self._model, "prompt": text, "content": text, "add_special_tokens": False}
        try:
            exchange = await self._wire.send("POST", "/tokenize", orjson.dumps(fields), timeout_s=60.0)
            answer = orjson.loads(bytes(exchange.body)) if exchange.status == 200 else {}
        except (WireError, ValueError):
            answer = {}
        count = _count(answer) if isinstance(answer, dict) else None
        self._is_there = count is not None
        return count


def _count(answer: dict[str, Any]) -> int | None:
    """Returns what an answer counts; llama.cpp's has the tokens only."""
    count, tokens = answer.get("count"), answer.get("tokens")
    if isinstance(count, int):
        return count
    return len(tokens) if isinstance(tokens, list) else None
