"""YAML becomes nodes that know their lines, and nothing of it can do harm."""

from __future__ import annotations

import pytest

from vllm_mxext.errors import ManifestError
from vllm_mxext.hub.manifest.document import MAX_BYTES, MAX_DEPTH, Node, parse

pytestmark = pytest.mark.promise("HUB-MANIFEST-2")


def read(text: str) -> Node:
    return parse(text.encode(), "m.yaml")


def test_keys_and_values_know_their_lines() -> None:
    root = read("a: 1\nb:\n  - x\n  - {c: 2,\n     d: 3}\n")
    assert root.plain() == {"a": 1, "b": ["x", {"c": 2, "d": 3}]}
    assert root.line_of(["b"]) == 2
    assert root.line_of(["b", 0]) == 3
    assert root.line_of(["b", 1, "d"]) == 5
    assert root.line_of(["b", 1, "absent"]) == 4


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("yes", "yes"), ("12:30", "12:30"), ("2020-01-01", "2020-01-01"), ("1e5", 1e5), ("0x10", 16), ("0o10", 8),
        ("010", 10), ("-7", -7), ("1.5", 1.5), ("~", None), ("null", None), ("", None), ("true", True), ("'1'", "1"),
        ("1e999", "1e999"), ("9" * 31, "9" * 31), (".nan", ".nan"), ("!!str 5", "5"), ("1_000", "1_000"),
        ("26b5:10de", "26b5:10de"), ("|\n  two\n", "two\n"),
    ],
)  # fmt: skip
def test_scalars_follow_the_core_schema_of_yaml_1_2(text: str, value: object) -> None:
    assert read(f"a: {text}").plain() == {"a": value}


def test_aliases_and_merge_keys_stand_for_what_they_name() -> None:
    root = read("a: &x {p: 1, q: 2}\nb: *x\nc:\n  <<: *x\n  q: 3\n")
    assert root.plain() == {"a": {"p": 1, "q": 2}, "b": {"p": 1, "q": 2}, "c": {"q": 3, "p": 1}}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]\n" for i in range(1, 12)
)
TOWER = "a0: &a0 [x]\n" + "".join(f"a{i}: &a{i} [[[[[[*a{i - 1}]]]]]]\n" for i in range(1, 2000))


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "The key 'a' is here twice; the first is in line 1."),
        ("a: !!python/object/apply:os.system ['true']\n", 1, "not allowed"),
        ("a: [1, 2\nb: 3\n", 2, "not valid YAML"),
        ("a: 1\n---\nb: 2\n", 2, "second document"),
        ("", 1, "empty"),
        ("# nothing\n", 1, "empty"),
        ("? [a]\n: 1\n", 1, "keys are text"),
        ("a: *b\n", 1, "no anchor"),
        ("a: &b [*b]\n", 1, "no anchor"),
        ("<<: [1]\n", 1, "merges something"),
        ("[" * 100_000, 1, f"more than {MAX_DEPTH} levels"),
        ("a: " * 3 + "\n", 1, "not valid YAML"),
        (BOMB, 6, "more than 200,000 values"),
        (TOWER, 5, f"more than {MAX_DEPTH} levels"),
        ("a: \x07\n", 1, "not valid YAML"),
        ("a" * (MAX_BYTES + 1), 1, "larger than 4 MiB"),
    ],
)
def test_what_is_no_manifest_is_refused_with_its_line(text: str, line: int, complaint: str) -> None:
    with pytest.raises(ManifestError) as caught:
        read(text)
    assert str(caught.value).startswith(f"m.yaml:{line}: ")
    assert complaint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_bytes_that_are_no_text_are_refused_with_their_line() -> None:
    with pytest.raises(ManifestError, match=r"\Am\.yaml:2: The file is not UTF-8 text\.\Z"):
        parse(b"a: 1\nb: \xff\n", "m.yaml")
