from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.tokenizer.stop_strings import StopStringMatcher

TEXT = st.text(alphabet="ab好", max_size=30)
STOPS = st.lists(st.text(alphabet="ab好", min_size=1, max_size=5), max_size=4)
CUTS = st.lists(st.integers(0, 30), max_size=8)


def first_stop(text: str, stops: list[str]) -> tuple[str, int] | None:
    """The stop string that is complete first, and where it ends: the definition, by whole-text search."""
    for end in range(len(text) + 1):
        complete = [stop for stop in stops if text[:end].endswith(stop)]
        if complete:
            return max(complete, key=len), end
    return None


def pieces(text: str, cuts: list[int]) -> list[str]:
    ends = [0, *sorted(min(cut, len(text)) for cut in cuts), len(text)]
    return [text[start:end] for start, end in pairwise(ends)]


@given(text=TEXT, stops=STOPS, cuts=CUTS, include=st.booleans())
def test_every_cut_gives_the_text_before_the_first_complete_stop_string(text, stops, cuts, include):
    matcher = StopStringMatcher(stops, include_in_output=include)
    shown = "".join([matcher.push(piece) for piece in pieces(text, cuts)]) + matcher.flush()
    found = first_stop(text, stops)
    if found is None:
        assert (matcher.matched, shown) == (None, text)
    else:
        stop, end = found
        assert matcher.matched == stop
        assert shown == (text[:end] if include else text[: end - len(stop)])


@given(text=TEXT, stops=STOPS, cuts=CUTS)
def test_shown_text_never_has_the_beginning_of_a_stop_string_and_holds_back_no_more_than_that(text, stops, cuts):
    matcher = StopStringMatcher(stops)
    seen = shown = ""
    for piece in pieces(text, cuts):
        seen += piece
        shown += matcher.push(piece)
        if matcher.matched is not None:
            break
        held = max(
            (n for stop in stops for n in range(len(stop)) if n <= len(seen) and seen.endswith(stop[:n])), default=0
        )
        assert shown == seen[: len(seen) - held]


@given(before=TEXT, after=TEXT, stops=STOPS)
def test_a_stop_string_completed_too_early_does_not_count(before, after, stops):
    matcher = StopStringMatcher(stops)
    shown = matcher.push(before, can_stop=False) + matcher.push(after) + matcher.flush()
    ends = [
        end for end in range(len(before) + 1, len(before + after) + 1) if (before + after)[:end].endswith(tuple(stops))
    ]
    if not ends:
        assert shown == before + after
        assert matcher.matched is None
    else:
        complete = [stop for stop in stops if (before + after)[: ends[0]].endswith(stop)]
        assert matcher.matched == max(complete, key=len)
        assert shown == (before + after)[: ends[0] - len(matcher.matched)]


def test_nothing_is_shown_after_a_match():
    matcher = StopStringMatcher(["END"])
    assert matcher.push("text E") == "text "
    assert matcher.push("ND and more") == ""
    assert matcher.push("more") == ""
    assert matcher.flush() == ""
    assert matcher.matched == "END"


def test_a_stop_string_kept_in_the_output_needs_no_holding_back():
    matcher = StopStringMatcher(["END"], include_in_output=True)
    assert matcher.push("text EN") == "text EN"
    assert matcher.push("D tail") == "D"


class CountedText(str):
    """Counts the characters that are read."""

    num_read = 0

    def __getitem__(self, index):
        self.num_read += 1
        return super().__getitem__(index)


def test_a_long_stop_string_costs_as_much_as_the_text_that_is_matched_with_it():
    stop = CountedText("ab" * 100_000)
    matcher = StopStringMatcher([stop])
    assert matcher.push("abababac") == "abababac"
    assert stop.num_read < 100
