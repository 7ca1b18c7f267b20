#!/usr/bin/env python3
"""Tests the streams of a running server: when pieces come, long and many answers, and that a stream says the same."""

from __future__ import annotations

import sys

from chat_server import RULE, Checks, Server, check_stream, rate_line, run, show_stream

STORY = "Tell me a short story about a robot learning to paint"


def all_tests(server: Server, checks: Checks) -> None:
    """Runs every test against one server."""
    title("Basic Streaming")
    check_stream(checks, show_stream(server, [{"role": "user", "content": STORY}]), 150)
    same_text(server, checks)
    title("Long Response Streaming")
    question = {"role": "user", "content": "Explain step by step how a computer adds two numbers"}
    check_stream(checks, show_stream(server, [question], 300), 300)
    rapid_fire(server, checks)
    title("Streaming with System Message")
    system = {"role": "system", "content": "You are a helpful assistant that answers briefly."}
    asked = {"role": "user", "content": "What is the capital of France?"}
    check_stream(checks, show_stream(server, [system, asked], 50, 0.0), 50)


def title(text: str) -> None:
    """Prints which test follows."""
    print(f"\n{RULE}\nTest: {text}")


def same_text(server: Server, checks: Checks) -> None:
    """A stream says what an answer in one piece says, and begins earlier than that ends."""
    title("Streaming vs Non-Streaming")
    messages = [{"role": "user", "content": STORY}]
    whole = server.ask(messages, 100, 0.0)
    stream = server.stream(messages, 100, 0.0)
    print(f"{RULE}\nNon-streaming: {whole.total_s:.3f}s until the text was there\n{rate_line(whole)}")
    first = f"{stream.chunk_times_s[0]:.3f}s" if stream.chunk_times_s else "never"
    print(f"Streaming: first text after {first}, all after {stream.total_s:.3f}s\n{rate_line(stream)}")
    checks.expect(stream.text == whole.text, "Streamed or not, temperature 0 says the same.")
    check_stream(checks, stream, 100)


def rapid_fire(server: Server, checks: Checks) -> None:
    """Streams one after the other, without a pause, are all whole."""
    title("Rapid-Fire Streaming Requests")
    print(RULE)
    for number in range(1, 6):
        answer = server.stream([{"role": "user", "content": f"What is {number} + {number}?"}], 30, 0.0)
        first = f"{answer.chunk_times_s[0]:.3f}s" if answer.chunk_times_s else "never"
        print(f"Request {number}: {len(answer.chunk_times_s)} chunks, TTFT {first}, total {answer.total_s:.3f}s")
        check_stream(checks, answer, 30)


if __name__ == "__main__":
    sys.exit(run(__doc__ or "", None, all_tests))
