"""Kinds of values read every spelling that they promise and nothing else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_mxext.config import values
from vllm_mxext.config.values import BadValueError


@pytest.mark.parametrize(
    ("text", "expected"),
    [("8192", 8192), ("8k", 8000), ("8K", 8192), ("1.5k", 1500), ("2m", 2_000_000), ("1_000", 1000), (5, 5)],
)
def test_whole_numbers_take_decimal_and_binary_suffixes(text: str | int, expected: int) -> None:
    assert values.integer(1).parse(text) == expected


@pytest.mark.parametrize("text", ["", "k", "1.5", "0", "-1", "8kk", "1e3", "0x10", True, 1.0, None, "١k"])
def test_other_spellings_of_whole_numbers_are_refused(text: Any) -> None:
    with pytest.raises(BadValueError, match="must be a whole number of at least 1"):
        values.integer(1).parse(text)


def test_words_stand_for_numbers_where_they_are_allowed() -> None:
    kind = values.integer(1, special={"auto": -1, "-1": -1})
    assert [kind.parse(word) for word in ("auto", "AUTO", "-1", -1, "7")] == [-1, -1, -1, -1, 7]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2GiB", 2**31),
        ("2gib", 2**31),
        ("2G", 2**31),
        ("2GB", 2 * 10**9),
        ("2g", 2 * 10**9),
        ("512 MiB", 2**29),
        ("1.5KiB", 1536),
        ("7", 7),
        ("7B", 7),
    ],
)
def test_sizes_take_the_usual_units(text: str, expected: int) -> None:
    assert values.byte_size(1).parse(text) == expected


@given(st.integers(10, 2**60))
def test_sizes_are_read_as_written(size: int) -> None:
    assert values.byte_size(10).parse(str(size)) == values.byte_size(10).parse(f"{size} B") == size


@pytest.mark.parametrize("text", ["9", "9B", "", "GiB", "2 XiB", "0.5B", "-1GiB"])
def test_other_spellings_of_sizes_are_refused(text: str) -> None:
    with pytest.raises(BadValueError, match="such as 2GiB"):
        values.byte_size(10).parse(text)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (["a", "b"], ("a", "b")),
        ("a,b", ("a", "b")),
        (["a,b", "c"], ("a", "b", "c")),
        ('["a", "b,c"]', ("a", "b,c")),
        ([], ()),
    ],
)
def test_lists_are_given_one_by_one_by_comma_or_as_json(value: Any, expected: tuple[str, ...]) -> None:
    assert values.text_list().parse(value) == expected


@pytest.mark.parametrize("value", ["", "a,,b", "[1]", "[", [1], 3])
def test_lists_of_anything_but_texts_are_refused(value: Any) -> None:
    with pytest.raises(BadValueError):
        values.text_list().parse(value)


@pytest.mark.parametrize("value", ["inf", "nan", "-0.5", "x", True])
def test_seconds_are_finite_and_not_negative(value: Any) -> None:
    with pytest.raises(BadValueError):
        values.seconds().parse(value)


def test_paths_know_the_home_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert values.path().parse("~/x") == Path("/home/somebody/x")
