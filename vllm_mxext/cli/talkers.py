"""What answers `mxext chat` and `mxext complete`: a running server, or an engine in this process."""

from __future__ import annotations

import argparse
from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vllm_mxext.cli.connection import DEFAULT_URL, Connection
from vllm_mxext.config.app import parse_serve_args
from vllm_mxext.config.options import all_flags
from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.errors import ConfigError, InvalidRequestError

if TYPE_CHECKING:
    from vllm_mxext.entrypoints.llm import LLM

Message = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Piece:
    """Part of an answer.

    Attributes:
        text: what is new.
        num_tokens: output tokens so far.
    """

    text: str
    num_tokens: int


class Talker(AbstractContextManager["Talker"], Protocol):
    """Answers; closing a generator of answers aborts the request."""

    @property
    def name(self) -> str:
        """Name of the model."""
        ...

    def chat(self, messages: Sequence[Message], fields: dict[str, Any]) -> Generator[Piece, None, None]:
        """Yields the answer to a conversation.

        Args:
            messages: the conversation.
            fields: sampling fields, named as in the API.

        Raises:
            MxError: it was refused, or failed.
        """
        ...

    def complete(self, prompt: str, fields: dict[str, Any]) -> Generator[Piece, None, None]:
        """Yields the continuation of a text; see `chat()`."""
        ...


def add_talker_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say who answers and how to sample."""
    parser.add_argument("--url", help=f"address of a running server (default: {DEFAULT_URL})")
    parser.add_argument("--api-key", help="key to present to it (default: $VLLM_API_KEY)")
    parser.add_argument("--model-name", help="served model to ask (default: the server's first)")
    parser.add_argument(
        "--model",
        metavar="FOLDER",
        help="load this checkpoint in this process instead of asking a server; flags of 'mxext serve' that concern the "
        "engine may follow. 'builtin' is the built-in model",
    )
    parser.add_argument("--max-tokens", type=int, help="output tokens at most")
    parser.add_argument("--temperature", type=float, help="0 is greedy (default: the model's)")
    parser.add_argument("--seed", type=int, help="makes sampling repeatable")


def make_talker(arguments: argparse.Namespace, flags: Sequence[str]) -> Talker:
    """Connects to a server, or loads a model.

    Args:
        arguments: as `add_talker_arguments()` defines them.
        flags: arguments of the command line that nothing has read; flags of the engine.

    Raises:
        ConfigError: they contradict each other, or the model cannot be loaded.
        ServerError: no server answers.
    """
    if arguments.model is None:
        if flags:
            flag = flags[0].partition("=")[0]
            close = did_you_mean(flag, [f"--{name.replace('_', '-')}" for name in vars(arguments)])
            raise ConfigError(f"Unknown flag {flag}{close} Flags of the engine need --model.")
        connection = Connection(DEFAULT_URL if arguments.url is None else arguments.url, arguments.api_key)
        return ServerTalker(connection, arguments.model_name or connection.first_model())
    if arguments.url is not None or arguments.model_name is not None:
        raise ConfigError("--model loads a model here, --url and --model-name ask a running server; use one of them.")
    return EngineTalker(_load(arguments.model, flags))


def _load(model: str, flags: Sequence[str]) -> LLM:
    app = parse_serve_args(flags, environ={}, prog="mxext chat")
    given = {}
    for flag in all_flags():
        if flag.field in app.origins:
            if not flag.facts.is_offline:
                raise ConfigError(f"--{flag.name} concerns servers; leave it out beside --model.")
            given[flag.field] = getattr(getattr(app, flag.group), flag.field)
    from vllm_mxext.entrypoints.llm import LLM  # noqa: PLC0415 - imports torch

    return LLM(model, **given)


class ServerTalker:
    """A running server.

    Args:
        connection: to it.
        name: the model to ask.
    """

    def __init__(self, connection: Connection, name: str) -> None:
        self._connection = connection
        self.name = name

    def __enter__(self) -> ServerTalker:
        """Returns itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Closes the connection."""
        self._connection.__exit__()

    def chat(self, messages: Sequence[Message], fields: dict[str, Any]) -> Generator[Piece, None, None]:
        """Yields the answer to a conversation."""
        return self._pieces("/v1/chat/completions", {**fields, "messages": list(messages)})

    def complete(self, prompt: str, fields: dict[str, Any]) -> Generator[Piece, None, None]:
        """Yields the continuation of a text."""
        return self._pieces("/v1/completions", {**fields, "prompt": prompt})

    def _pieces(self, path: str, body: dict[str, Any]) -> Generator[Piece, None, None]:
        body = {"model": self.name, **body, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
        num_tokens = 0
        for event in self._connection.stream(path, body):
            num_tokens = (event.get("usage") or {}).get("completion_tokens", num_tokens)
            for choice in event.get("choices", ()):
                text = choice["text"] if "text" in choice else choice["delta"].get("content")
                yield Piece(text or "", num_tokens)


class EngineTalker:
    """An engine in this process.

    Args:
        llm: the engine; closed at the end.
    """

    def __init__(self, llm: LLM) -> None:
        self._llm = llm
        self.name = llm.model.served_names[0]

    def __enter__(self) -> EngineTalker:
        """Returns itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Releases the model."""
        self._llm.close()

    def chat(self, messages: Sequence[Message], fields: dict[str, Any]) -> Generator[Piece, None, None]:
        """Yields the answer to a conversation, which may fill the context."""
        from vllm_mxext.requests import TextPrompt  # noqa: PLC0415 - slow to start with otherwise

        text = self._llm.get_tokenizer().apply_chat_template(list(messages))
        return self._pieces(TextPrompt(text, add_special_tokens=False), {"max_tokens": None, **fields})

    def complete(self, prompt: str, fields: dict[str, Any]) -> Generator[Piece, None, None]:
        """Yields the continuation of a text."""
        return self._pieces(prompt, fields)

    def _pieces(self, prompt: Any, fields: dict[str, Any]) -> Generator[Piece, None, None]:
        defaults = self._llm.get_default_sampling_params()
        unknown = sorted(fields.keys() - defaults.__dataclass_fields__)
        if unknown:
            raise InvalidRequestError(f"SamplingParams has no field {unknown[0]}; remove it.", param=unknown[0])
        params = defaults.clone(**fields)
        num_tokens = 0
        for output in self._llm.stream(prompt, params):
            num_tokens += len(output.outputs[0].token_ids)
            yield Piece(output.outputs[0].text, num_tokens)
