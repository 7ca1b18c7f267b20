"""Server-sent events: the standard's rules, wherever the bytes are cut."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from vllm_mxext.client.sse import Event, EventReader, MalformedEventError

pytestmark = pytest.mark.promise("CLIENT-6")

SAMPLE = (
    b'\xef\xbb\xbf: hello\r\ndata: {"a":1}\r\n\r\n'
    b"event: error\ndata:one\ndata: two\n\n"
    b"id: 7\rretry: 10\rdata:  \xc3\xa9\xf0\x9f\x98\x80\r\r"
    b": keep-alive\n\nevent: nothing\n\n"
    b"data\n\ndata: [DONE]\r\n\r\ndata: unfinished\n"
)
EVENTS = [
    Event('{"a":1}'),
    Event("one\ntwo", "error"),
    Event(" é😀"),
    Event(""),
    Event("[DONE]"),
]


def read(*chunks: bytes) -> list[Event]:
    reader = EventReader()
    return [event for chunk in chunks for event in reader.feed(chunk)]


def test_lines_comments_and_fields_are_read_as_the_standard_says() -> None:
    assert read(SAMPLE) == EVENTS


def test_a_cut_at_any_byte_changes_nothing() -> None:
    for place in range(len(SAMPLE) + 1):
        assert read(SAMPLE[:place], SAMPLE[place:]) == EVENTS, place
    assert read(*(SAMPLE[place : place + 1] for place in range(len(SAMPLE)))) == EVENTS


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    lines=st.lists(
        st.sampled_from([b"data: x", b"data:", b"event: e", b": c", b"", b"data: \xff", b"other: 1", b"data"])
    ),
    ends=st.lists(st.sampled_from([b"\n", b"\r", b"\r\n"]), min_size=1),
    cuts=st.lists(st.integers(0, 400)),
)
def test_any_stream_reads_the_same_in_any_pieces(lines: list[bytes], ends: list[bytes], cuts: list[int]) -> None:
    stream = b"".join(line + ends[number % len(ends)] for number, line in enumerate(lines))
    places = sorted({0, *(min(cut, len(stream)) for cut in cuts), len(stream)})
    pieces = [stream[begin:end] for begin, end in pairwise(places)]
    assert read(*pieces) == read(stream)


@pytest.mark.parametrize("stream", [b"data: " + b"x" * 200, b": " + b"x" * 200, b"data: xxxxxxxx\n" * 20])
def test_an_event_has_a_largest_size(stream: bytes) -> None:
    reader = EventReader(max_bytes=100)

    def feed() -> None:
        for place in range(0, len(stream), 10):
            list(reader.feed(stream[place : place + 10]))

    with pytest.raises(MalformedEventError, match="larger than 100 bytes"):
        feed()


def test_many_small_events_are_no_large_one() -> None:
    reader = EventReader(max_bytes=100)
    assert sum(len(list(reader.feed(b"data: xxxxxxxx\n\n"))) for _ in range(100)) == 100


def test_events_before_one_that_is_too_large_are_not_lost() -> None:
    events = EventReader(max_bytes=10).feed(b"data: a\n\ndata: " + b"x" * 20)
    assert next(events) == Event("a")
    with pytest.raises(MalformedEventError):
        next(events)
