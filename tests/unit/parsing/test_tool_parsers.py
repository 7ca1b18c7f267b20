"""Every tool parser reads its format's published examples, whatever the cuts."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.unit.parsing.cuts import calls, events, every_cut, parsed
from tests.unit.parsing.examples import EXAMPLES, FRAGMENTS, Example
from vllm_mxext.parsing.chain import join
from vllm_mxext.parsing.events import ToolArgumentsDelta, ToolCallStart
from vllm_mxext.parsing.registry import tool_parser_names

_NAMED = [pytest.param(example, id=f"{example.parser}-{index}") for index, example in enumerate(EXAMPLES)]
_CHARACTERS = st.text(" \n\"'{}[](),:;=<>|\\/a1é😀", max_size=5)


def pieces_of(text: str, cuts: list[int]) -> list[str]:
    """Returns a text cut at some positions, given in any order and of any size."""
    places = sorted({cut % (len(text) + 1) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(places)]


@pytest.mark.parametrize("example", _NAMED)
@pytest.mark.promise("PARSE-1")
def test_an_example_becomes_the_message_that_it_stands_for(example: Example) -> None:
    message = parsed([example.text], example.parser)
    assert calls(message) == list(example.calls)
    assert message.content == example.content
    assert message.reasoning == example.reasoning
    if example.ids:
        assert tuple(call.id for call in message.calls) == example.ids


@pytest.mark.parametrize("example", _NAMED)
@pytest.mark.promise("PARSE-2", "PAIN-4")
def test_pain_4_streaming_loses_no_text_wherever_an_example_is_cut(example: Example) -> None:
    whole = parsed([example.text], example.parser)
    for pieces in every_cut(example.text):
        assert parsed(pieces, example.parser) == whole, pieces


@pytest.mark.promise("PARSE-2")
def test_every_parser_is_held_to_hundreds_of_cuts() -> None:
    cuts = dict.fromkeys(tool_parser_names(), 0)
    for example in EXAMPLES:
        cuts[example.parser] += len(example.text)
    assert min(cuts.values()) >= 100, cuts
    assert sum(cuts.values()) >= 7500, cuts


@pytest.mark.parametrize("example", _NAMED)
def test_an_example_broken_off_anywhere_gives_a_beginning_of_its_message(example: Example) -> None:
    whole = parsed([example.text], example.parser)
    for length in range(len(example.text)):
        message = parsed([example.text[:length]], example.parser)
        assert [call.name for call in whole.calls[: len(message.calls)]] == [call.name for call in message.calls]


@pytest.mark.parametrize("example", _NAMED)
def test_a_call_is_announced_once_and_before_its_arguments(example: Example) -> None:
    announced = -1
    for event in events(list(example.text), example.parser):
        if isinstance(event, ToolCallStart):
            assert event.index == announced + 1
            announced = event.index
        elif isinstance(event, ToolArgumentsDelta):
            assert event.index == announced


@pytest.mark.parametrize("parser", tool_parser_names())
@pytest.mark.promise("PARSE-2", "PARSE-3")
def test_fragments_of_a_format_in_any_order_do_no_harm(parser: str) -> None:
    fragments = st.sampled_from([*FRAGMENTS[parser], *FRAGMENTS["any"]])

    @settings(max_examples=100, deadline=None)
    @given(st.lists(fragments | _CHARACTERS, max_size=14), st.lists(st.integers(0, 10**6), max_size=8))
    def check(parts: list[str], cuts: list[int]) -> None:
        text = "".join(parts)
        whole = parsed([text], parser)
        assert parsed(pieces_of(text, cuts), parser) == whole
        assert parsed(list(text), parser) == whole
        if not whole.calls and not whole.reasoning and parser != "openai":
            assert whole.content == text

    check()


@pytest.mark.parametrize("parser", tool_parser_names())
def test_plain_text_passes_at_once(parser: str) -> None:
    assert join(events(["Hello, "], parser)).content == "Hello, "
    parts = ["Five", " words", " that", " are", " streamed."]
    found = events(parts, parser)
    assert len(found) == len(parts)
    assert join(found).content == "Five words that are streamed."
