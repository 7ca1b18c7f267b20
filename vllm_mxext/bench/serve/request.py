"""One measured request: its body, its answer, read as it arrives, and how it failed if it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from vllm_mxext.bench.serve.plan import RequestPlan
from vllm_mxext.bench.serve.wire import Wire, WireError
from vllm_mxext.client.chunks import TOKEN_FIELDS

PATHS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}

_SHOWN = 200


@dataclass(slots=True)
class Reply:
    """The answer to a request, as far as it has come; times are monotonic seconds.

    Attributes:
        sent_s: when a connection was asked for.
        written_s: when it was written to the connection.
        ended_s: when the answer was complete, or had failed.
        chunk_times_s: arrival of every event with text.
        empty_times_s: arrival of every event with a choice that has no text.
        chunk_tokens: tokens of each event with text; empty if the server does not say.
        texts: pieces of the text.
        usage: the last one that the server sent.
        finish_reason: empty if there was none.
        failure: one of `result.FAILURES`; empty if there was none.
        failure_detail: the same in words.
        status: HTTP status; None without an answer.
    """

    sent_s: float = 0.0
    written_s: float | None = None
    ended_s: float = 0.0
    chunk_times_s: list[float] = field(default_factory=list)
    empty_times_s: list[float] = field(default_factory=list)
    chunk_tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    usage: dict[str, Any] = field(default_factory=dict)
    finish_reason: str = ""
    failure: str = ""
    failure_detail: str = ""
    status: int | None = None

    @property
    def text(self) -> str:
        """All of the text."""
        return "".join(self.texts)


def request_body(
    plan: RequestPlan,
    model: str,
    prompt: str | Sequence[int] | Sequence[dict[str, str]],
    max_tokens: int,
    seed: int | None = None,
) -> bytes:
    """Returns the JSON of a request.

    Args:
        plan: what requests ask for.
        model: name at the server.
        prompt: text, token ids (completions only), or messages (chat only).
        max_tokens: of the answer.
        seed: for sampling; None leaves it to the server.
    """
    body: dict[str, Any] = {"model": model, "max_tokens": max_tokens, "temperature": plan.temperature}
    if plan.endpoint == "chat":
        body["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    else:
        body["prompt"] = prompt
    if seed is not None:
        body["seed"] = seed
    if plan.ignore_eos:
        body["ignore_eos"] = True
    body["stream"] = plan.stream
    if plan.stream:
        body["stream_options"] = {"include_usage": True}
        if plan.chunk_tokens:
            body["stream_options"]["continuous_usage_stats"] = True
    return orjson.dumps(body)


async def ask(wire: Wire, plan: RequestPlan, body: bytes, reply: Reply) -> None:
    """Sends one request and fills `reply`; failures of the server or the network are noted there, never raised.

    Args:
        wire: connections to the server.
        plan: what requests ask for.
        body: JSON.
        reply: filled as the answer arrives, so that an interrupted run keeps what has arrived.
    """
    reader = StreamReader(reply) if plan.stream else None
    try:
        exchange = await wire.send("POST", PATHS[plan.endpoint], body, reader, plan.timeout)
    except WireError as error:
        _fail(reply, error.kind, str(error))
        return
    reply.sent_s, reply.written_s = exchange.sent_s, exchange.written_s
    reply.ended_s, reply.status = exchange.ended_s, exchange.status
    if exchange.status != 200:
        _fail(reply, "http_status", f"HTTP {exchange.status}: {_refusal(bytes(exchange.body))}")
    elif reader is not None:
        reader.finish(exchange.headers.get("content-type", ""))
    else:
        _read_whole(reply, bytes(exchange.body))


class StreamReader:
    """Reads the server-sent events of one answer into a `Reply`.

    Lenient and fast where `client/sse.py` is strict: what it spends on an event, it adds to the client's lag.
    """

    def __init__(self, reply: Reply) -> None:
        self._reply = reply
        self._rest = b""
        self._is_done = False
        self._num_tokens = 0
        self._seen = b""

    def feed(self, at: float, data: bytes) -> None:
        """Takes a piece of the body that arrived at `at`, in monotonic seconds."""
        if self._rest:
            data = self._rest + data
        if not self._seen:
            self._seen = data[:_SHOWN]
        *lines, self._rest = data.split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(at, line[5:].strip())

    def finish(self, content_type: str) -> None:
        """Ends the answer; notes a failure if it was no complete event stream."""
        reply = self._reply
        if reply.failure:
            return
        if not content_type.startswith("text/event-stream"):
            _fail(
                reply, "protocol", f"not an event stream but {content_type or 'no content type'}: {_shown(self._seen)}"
            )
        elif not self._is_done and not reply.finish_reason:
            _fail(reply, "disconnected", "the stream ended before its last event")
        elif not reply.chunk_times_s and not reply.usage.get("completion_tokens"):
            _fail(reply, "empty", "the stream had no tokens")

    def _event(self, at: float, payload: bytes) -> None:
        if payload == b"[DONE]":
            self._is_done = True
            return
        reply = self._reply
        try:
            event = orjson.loads(payload)
            choices, usage, error = event.get("choices"), event.get("usage"), event.get("error")
            if choices:
                has_text = _take_choice(reply, choices[0])
                (reply.chunk_times_s if has_text else reply.empty_times_s).append(at)
            else:
                has_text = False
            if isinstance(usage, dict) and usage:
                reply.usage = usage
                if choices:
                    self._count(int(usage.get("completion_tokens") or 0), has_text)
        except (ValueError, AttributeError, TypeError, KeyError, IndexError):
            if not reply.failure:
                _fail(reply, "protocol", f"an event that cannot be understood: {_shown(payload)}")
            return
        if error:
            _fail(reply, "server_error", f"an error in the stream: {_shown(orjson.dumps(error))}")

    def _count(self, total: int, has_text: bool) -> None:
        if has_text:
            self._reply.chunk_tokens.append(total - self._num_tokens)
            self._num_tokens = total


def _take_choice(reply: Reply, choice: dict[str, Any]) -> bool:
    if reason := choice.get("finish_reason"):
        reply.finish_reason = str(reason)
    if (delta := choice.get("delta") or choice.get("message")) is None:
        text = choice.get("text")
        if text:
            reply.texts.append(str(text))
        return bool(text)
    has_text = False
    for key in TOKEN_FIELDS:
        if value := delta.get(key):
            has_text = True
            reply.texts.append(value if isinstance(value, str) else orjson.dumps(value).decode())
    return has_text


def _read_whole(reply: Reply, body: bytes) -> None:
    try:
        answer = orjson.loads(body)
        if answer.get("error"):
            _fail(reply, "server_error", f"an error in the answer: {_shown(orjson.dumps(answer['error']))}")
            return
        usage = answer.get("usage")
        reply.usage = usage if isinstance(usage, dict) else {}
        has_text = _take_choice(reply, answer["choices"][0])
    except (ValueError, AttributeError, TypeError, KeyError, IndexError):
        _fail(reply, "protocol", f"an answer that cannot be understood: {_shown(body)}")
        return
    if not has_text and not reply.usage.get("completion_tokens"):
        _fail(reply, "empty", "the answer had no tokens")


def _fail(reply: Reply, kind: str, detail: str) -> None:
    reply.failure, reply.failure_detail = kind, detail


def _refusal(body: bytes) -> str:
    try:
        message = orjson.loads(body)["error"]["message"]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return _shown(body)
    return _shown(str(message).encode())


def _shown(content: bytes) -> str:
    return " ".join(content[:_SHOWN].decode("utf-8", "replace").split())
