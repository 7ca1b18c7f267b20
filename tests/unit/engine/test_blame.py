"""Who is suspected of killing the core, and who is convicted."""

from __future__ import annotations

from vllm_mxext.engine.blame import Blame


def test_one_death_makes_nobody_a_suspect() -> None:
    blame = Blame()
    blame.record_death(["a", "b"], [])
    assert blame.suspects(["a", "b"]) == []


def test_two_deaths_without_a_token_make_a_suspect() -> None:
    blame = Blame()
    blame.record_death(["a", "b"], ["b"])
    blame.record_death(["a", "b"], ["b"])
    assert blame.suspects(["a", "b", "new"]) == ["a"]


def test_a_token_clears() -> None:
    blame = Blame()
    for _ in range(3):
        blame.record_death(["a"], [])
        blame.clear("a")
    assert blame.suspects(["a"]) == []
    assert not blame.is_guilty("a")


def test_only_deaths_alone_convict() -> None:
    blame = Blame()
    for _ in range(5):
        blame.record_death(["a", "b"], [])
    assert not blame.is_guilty("a")
    for _ in range(2):
        blame.record_death(["a"], [])
        assert not blame.is_guilty("a")  # a lone request is not blamed for two deaths that had other causes
    blame.record_death(["a"], [])
    assert blame.is_guilty("a")
    assert not blame.is_guilty("b")


def test_who_died_alone_before_is_tried_first() -> None:
    blame = Blame()
    for _ in range(2):
        blame.record_death(["a", "b", "c"], [])
    blame.record_death(["b"], [])
    assert blame.suspects(["a", "b", "c"]) == ["b", "a", "c"]
