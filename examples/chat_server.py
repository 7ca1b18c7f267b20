"""What test_vllm.py and test_vllm_streaming.py share: asks a server, measures and prints its answers, counts checks."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

RULE = "=" * 70
SHORTEST_S = 0.01  # in less time several chunks came as one, and their speed is that of the reading

Messages = list[dict[str, str]]


class TroubleError(Exception):
    """The server cannot be asked; the text is one sentence that says what to do."""


@dataclass
class Answer:
    """One answer with its measurements.

    Attributes:
        text: of it.
        finish_reason: why it ended.
        usage: tokens as the server counted them; empty if it did not say.
        total_s: from the request to the end.
        chunk_times_s: when each chunk with text came, since the request; empty for an answer in one piece.
    """

    text: str = ""
    finish_reason: str | None = None
    usage: dict[str, int] = field(default_factory=dict)
    total_s: float = 0.0
    chunk_times_s: list[float] = field(default_factory=list)

    @property
    def generation_s(self) -> float:
        """From the first chunk to the end."""
        return self.total_s - self.chunk_times_s[0]

    def tokens_per_s(self) -> float | None:
        """Output tokens per second; of a stream those after the first one. None if they were too few or too quick."""
        count = self.usage.get("completion_tokens", 0)
        if not self.chunk_times_s:
            return count / self.total_s if count and self.total_s else None
        return (count - 1) / self.generation_s if count > 1 and self.generation_s >= SHORTEST_S else None


class Server:
    """The server that is tested.

    Args:
        url: address.
        model: to be asked.
    """

    def __init__(self, url: str, model: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=httpx.Timeout(10.0, read=120.0), trust_env=False)
        self._url = url
        self.model = model
        self.backend = ""

    def check(self) -> None:
        """Raises TroubleError unless the server answers and serves the model."""
        listing = _content(self._request("GET", "/v1/models"))
        served = {entry["id"]: entry for entry in listing.get("data", [])}
        if self.model not in served:
            raise TroubleError(
                f"{self._url} does not serve '{self.model}' but {', '.join(served) or 'nothing'}; choose with --model."
            )
        owner = str(served[self.model].get("owned_by") or "unknown")
        self.backend = "vLLM" if owner == "vllm" else owner

    def ask(self, messages: Messages, max_tokens: int = 150, temperature: float = 0.7) -> Answer:
        """Asks for an answer in one piece."""
        began = time.perf_counter()
        content = _content(self._request("POST", "/v1/chat/completions", self._body(messages, max_tokens, temperature)))
        choice = content["choices"][0]
        text = choice["message"].get("content") or ""
        return Answer(text, choice["finish_reason"], content.get("usage") or {}, time.perf_counter() - began)

    def stream(
        self, messages: Messages, max_tokens: int = 150, temperature: float = 0.7,
        show: Callable[[str], None] = lambda _text: None,
    ) -> Answer:  # fmt: skip
        """Asks for a stream, and notes when each piece of text comes."""
        body = self._body(messages, max_tokens, temperature)
        body |= {"stream": True, "stream_options": {"include_usage": True}}
        answer = Answer()
        is_whole = False
        began = time.perf_counter()
        try:
            with self._client.stream("POST", "/v1/chat/completions", json=body) as response:
                if response.is_error:
                    response.read()
                    raise TroubleError(_refusal(response))
                for line in _lines(response):
                    data = line.removeprefix("data:").strip()
                    if not line.startswith("data:"):
                        continue
                    if data == "[DONE]":
                        is_whole = True
                        break
                    self._take(json.loads(data), answer, time.perf_counter() - began, show)
        except httpx.HTTPError as error:
            raise TroubleError(f"The stream from {self._url} broke: {error or type(error).__name__}.") from None
        answer.total_s = time.perf_counter() - began
        if not is_whole:
            raise TroubleError(f"The stream from {self._url} ended without [DONE]; see the server's log.")
        return answer

    def _take(self, event: dict[str, Any], answer: Answer, seconds: float, show: Callable[[str], None]) -> None:
        if event.get("error"):
            raise TroubleError(f"The server ended the stream with an error: {event['error']}.")
        answer.usage = event.get("usage") or answer.usage
        for choice in event.get("choices", []):
            text = choice["delta"].get("content")
            if text:
                answer.chunk_times_s.append(seconds)
                answer.text += text
                show(text)
            answer.finish_reason = choice.get("finish_reason") or answer.finish_reason

    def _body(self, messages: Messages, max_tokens: int, temperature: float) -> dict[str, Any]:
        return {"model": self.model, "messages": messages, "max_tokens": max_tokens, "temperature": temperature}

    def _request(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        try:
            response = self._client.request(method, path, json=body)
        except httpx.HTTPError as error:
            raise TroubleError(
                f"No server answers at {self._url} ({error or type(error).__name__}); start one with 'python main.py "
                "server start NAME', or name another port with --port."
            ) from None
        if response.is_error:
            raise TroubleError(_refusal(response))
        return response


def _lines(response: httpx.Response) -> Iterator[str]:
    """Yields the lines of a stream; httpx's `iter_lines` also splits at characters that JSON may hold, as U+2028."""
    begun = b""
    for piece in response.iter_bytes():
        *lines, begun = (begun + piece).split(b"\n")
        yield from (line.decode("utf-8", "replace") for line in lines)
    yield begun.decode("utf-8", "replace")


def _content(response: httpx.Response) -> dict[str, Any]:
    content: dict[str, Any] = response.json()
    if content.get("error"):  # some servers say so with status 200
        raise TroubleError(_refusal(response))
    return content


def _refusal(response: httpx.Response) -> str:
    return f"The server answered {response.status_code}: {response.text[:200]}"


class Checks:
    """Counts what was checked and what was not as it should be."""

    def __init__(self) -> None:
        self.done = 0
        self.failures: list[str] = []

    def expect(self, is_right: bool, sentence: str) -> None:
        """Notes whether something is as it should be."""
        self.done += 1
        if not is_right:
            self.failures.append(sentence)
            print(f"  FAILED: {sentence}")

    def exit_code(self) -> int:
        """Prints the result; returns 1 if anything was not as it should be."""
        print(f"\n{RULE}\n{self.done - len(self.failures)} of {self.done} checks passed")
        for sentence in self.failures:
            print(f"  FAILED: {sentence}")
        print(RULE)
        return 1 if self.failures else 0


def tokens_line(usage: dict[str, int]) -> str:
    """Returns the tokens of an answer, as the server counted them."""
    if not usage:
        return "  Tokens: the server did not say"
    return (
        f"  Tokens: {usage['prompt_tokens']} prompt + {usage['completion_tokens']} completion = "
        f"{usage['total_tokens']} total"
    )


def rate_line(answer: Answer) -> str:
    """Returns the tokens per second of an answer."""
    rate = answer.tokens_per_s()
    return f"  Tokens/sec: {rate:.2f}" if rate is not None else "  Tokens/sec: too few or too quick to tell"


def check_usage(checks: Checks, answer: Answer, max_tokens: int) -> None:
    """Checks that the count of tokens is there and adds up."""
    usage = answer.usage
    checks.expect(bool(usage), "The server counts the tokens of an answer.")
    if usage:
        adds_up = usage["prompt_tokens"] + usage["completion_tokens"] == usage["total_tokens"]
        checks.expect(adds_up, "Prompt and completion tokens add up to the total.")
        checks.expect(
            0 < usage["completion_tokens"] <= max_tokens, "There are output tokens, and no more than allowed."
        )


def print_stream_metrics(answer: Answer) -> None:
    """Prints what a stream has shown."""
    times = answer.chunk_times_s
    print(f"\n{RULE}\nStreaming Metrics:")
    print(f"  Total chunks: {len(times)}")
    if times:
        print(f"  Time to first token (TTFT): {times[0]:.3f}s")
        print(f"  Total time: {answer.total_s:.3f}s")
        print(f"  Generation time: {answer.generation_s:.3f}s")
    if len(times) > 1:
        print(f"  Avg time per chunk: {(times[-1] - times[0]) / (len(times) - 1):.3f}s")
    print(tokens_line(answer.usage))
    print(rate_line(answer))
    print(f"  Finish reason: {answer.finish_reason}\n{RULE}")


def show_stream(server: Server, messages: Messages, max_tokens: int = 150, temperature: float = 0.7) -> Answer:
    """Prints a conversation's next answer while it comes, and what the stream has shown."""
    print(f"\n{RULE}\nModel: {server.model}\nBackend: {server.backend} (streaming)\nMax Tokens: {max_tokens}\n{RULE}")
    for message in messages:
        print(f"{message['role'].capitalize()}: {message['content']}")
    print("Assistant: ", end="", flush=True)
    answer = server.stream(messages, max_tokens, temperature, lambda text: print(text, end="", flush=True))
    print()
    print_stream_metrics(answer)
    return answer


def check_stream(checks: Checks, answer: Answer, max_tokens: int) -> None:
    """Checks that an answer came as a stream, whole."""
    check_usage(checks, answer, max_tokens)
    checks.expect(bool(answer.chunk_times_s), "The stream brings text.")
    checks.expect(answer.finish_reason in ("stop", "length"), "The stream says why it ended.")
    is_simulated = len(answer.chunk_times_s) < 2 <= answer.usage.get("completion_tokens", 0) // 8
    checks.expect(not is_simulated, "A long answer comes in more than one chunk.")


def port(text: str) -> int:
    """Returns the number of a port (named for the error text of argparse)."""
    if not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError("must be from 1 to 65535")
    return int(text)


def run(description: str, argv: Sequence[str] | None, tests: Callable[[Server, Checks], None]) -> int:
    """Reads the command line and runs the tests; returns the exit code.

    Args:
        description: of the script.
        argv: arguments; those of the process by default.
        tests: what to do with a server that answers.
    """
    parser = argparse.ArgumentParser(
        description=description, epilog="Exit codes: 0 all checks passed, 1 a check failed or no server, 2 wrong usage."
    )
    parser.add_argument("--model", default="gpt2", help="model to ask (default: gpt2)")
    parser.add_argument("--port", type=port, default=8000, help="port of the server on this machine (default: 8000)")
    arguments = parser.parse_args(argv)
    server, checks = Server(f"http://127.0.0.1:{arguments.port}", arguments.model), Checks()
    try:
        server.check()
        tests(server, checks)
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        print(
            f"{parser.prog}: What answers at port {arguments.port} does not speak like an OpenAI-compatible server "
            f"({type(error).__name__}: {error}).",
            file=sys.stderr,
        )
        return 1
    except TroubleError as trouble:
        print(f"{parser.prog}: {trouble}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return checks.exit_code()
