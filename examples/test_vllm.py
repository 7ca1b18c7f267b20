#!/usr/bin/env python3
"""Tests a running server: answers in one piece and streamed, conversations, temperatures, times and token counts."""

from __future__ import annotations

import sys

from chat_server import RULE, Checks, Server, check_stream, check_usage, rate_line, run, show_stream, tokens_line

HAIKU = "Write a haiku about artificial intelligence"
MAX_TOKENS = 100


def all_tests(server: Server, checks: Checks) -> None:
    """Runs every test against one server."""
    one_piece(server, checks)
    streamed(server, checks)
    conversation(server, checks)
    temperatures(server, checks)
    performance(server, checks)


def head(server: Server, title: str, prompt: str) -> None:
    """Prints what follows."""
    print(f"\n{RULE}\nTest: {title}\nModel: {server.model}\nBackend: {server.backend}\nPrompt: {prompt}\n{RULE}")


def one_piece(server: Server, checks: Checks) -> None:
    """An answer in one piece is whole, and its tokens are counted."""
    head(server, "Non-Streaming Chat Completion", HAIKU)
    answer = server.ask([{"role": "user", "content": HAIKU}], MAX_TOKENS)
    print("\nResponse: " + answer.text.replace("\n", "\n          "))
    print(f"\nMetadata:\n  Finish Reason: {answer.finish_reason}\n{tokens_line(answer.usage)}")
    print(f"  Time: {answer.total_s:.2f}s\n{rate_line(answer)}")
    check_usage(checks, answer, MAX_TOKENS)
    checks.expect(bool(answer.text.strip()), "The answer has text.")
    checks.expect(answer.finish_reason in ("stop", "length"), "The answer says why it ended.")


def streamed(server: Server, checks: Checks) -> None:
    """A stream brings an answer in pieces."""
    print(f"\n{RULE}\nTest: Streaming Chat Completion")
    prompt = "Tell me a short story about a robot learning to paint"
    check_stream(checks, show_stream(server, [{"role": "user", "content": prompt}]), 150)


def conversation(server: Server, checks: Checks) -> None:
    """Later turns of a conversation hold the earlier ones."""
    print(f"\n{RULE}\nTest: Multi-Turn Conversation\nModel: {server.model}\n{RULE}")
    messages: list[dict[str, str]] = []
    prompt_tokens: list[int] = []
    for question in ("What is 12 + 30?", "And what is the capital of France?", "What was my first question?"):
        messages.append({"role": "user", "content": question})
        answer = server.ask(messages, MAX_TOKENS, 0.0)
        print(f"\nUser: {question}\nAssistant: {answer.text}\n{tokens_line(answer.usage)}")
        messages.append({"role": "assistant", "content": answer.text})
        prompt_tokens.append(answer.usage.get("prompt_tokens", 0))
    checks.expect(prompt_tokens == sorted(set(prompt_tokens)), "Every turn has a longer prompt than the one before.")


def temperatures(server: Server, checks: Checks) -> None:
    """Temperature 0 repeats itself; higher ones are taken too."""
    prompt = "Name a colour"
    print(f"\n{RULE}\nTest: Temperature Variations\nModel: {server.model}\nPrompt: {prompt}\n{RULE}")
    messages = [{"role": "user", "content": prompt}]
    for temperature in (0.0, 0.5, 1.0):
        answer = server.ask(messages, 30, temperature)
        print(f"\nTemperature {temperature}: {answer.text}")
        check_usage(checks, answer, 30)
    checks.expect(
        server.ask(messages, 30, 0.0).text == server.ask(messages, 30, 0.0).text, "Temperature 0 repeats its answer."
    )


def performance(server: Server, checks: Checks) -> None:
    """Times of a few requests, one after the other."""
    count = 3
    print(f"\n{RULE}\nTest: Performance Metrics\nModel: {server.model}\nRequests: {count}\n{RULE}")
    answers = [server.stream([{"role": "user", "content": HAIKU}], MAX_TOKENS) for _ in range(count)]
    for number, answer in enumerate(answers, 1):
        ttft = f"{answer.chunk_times_s[0]:.3f}s" if answer.chunk_times_s else "no text"
        print(
            f"\nRequest {number}: TTFT {ttft}, total {answer.total_s:.3f}s\n{tokens_line(answer.usage)}\n"
            f"{rate_line(answer)}"
        )
        check_usage(checks, answer, MAX_TOKENS)


if __name__ == "__main__":
    sys.exit(run(__doc__ or "", None, all_tests))
