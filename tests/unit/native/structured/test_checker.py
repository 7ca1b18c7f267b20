"""Absurd grammars end the attempt to compile them, and nothing else; good ones are tried once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import psutil
import pytest

from vllm_mxext import builtin
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.errors import EngineNotReadyError, InvalidRequestError
from vllm_mxext.native.structured.admission import GrammarAdmission
from vllm_mxext.native.structured.checker import GrammarChecker
from vllm_mxext.native.structured.grammar import grammar_text

pytestmark = pytest.mark.promise("STRUCT-3")

VOCAB_SIZE = 2048

CHAIN = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(3_000)}
DEEP = {"json": {"$defs": {**CHAIN, "d3000": {}}, "$ref": "#/$defs/d0"}}
SLOW = {"json": {"type": "object", "patternProperties": {f"^a{i}(b|c)*$": {} for i in range(500)}}}


def grammar(**constraint: Any) -> str:
    return grammar_text(StructuredOutputsParams(**constraint), {})


@pytest.fixture(scope="module")
def checker() -> Iterator[GrammarChecker]:
    checker = GrammarChecker(builtin.model_path(), VOCAB_SIZE, [2])
    yield checker
    checker.close()


def test_a_good_grammar_passes(checker: GrammarChecker) -> None:
    checker.check(grammar(regex="a+"))


def test_a_bad_one_is_refused_with_the_reason(checker: GrammarChecker) -> None:
    with pytest.raises(InvalidRequestError, match="unclosed group"):
        checker.check(grammar(regex="(a"))


def test_a_regex_that_nothing_matches_is_refused(checker: GrammarChecker) -> None:
    with pytest.raises(InvalidRequestError):
        checker.check(grammar(regex=r"[^\s\S]"))


def test_one_that_overflows_the_stack_is_refused_and_the_next_one_served(checker: GrammarChecker) -> None:
    with pytest.raises(InvalidRequestError, match="too deep or too large"):
        checker.check(grammar(**DEEP))
    checker.check(grammar(regex="a+"))


def test_one_that_takes_too_long_is_refused_and_the_next_one_served(checker: GrammarChecker) -> None:
    with pytest.raises(InvalidRequestError, match="takes too long"):
        checker.check(grammar(**SLOW))
    checker.check(grammar(regex="a+"))


def test_an_answer_that_nobody_waited_for_is_not_that_of_the_next_grammar(
    checker: GrammarChecker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(process: object) -> None:
        raise KeyboardInterrupt

    checker.check(grammar(regex="a+"))
    with monkeypatch.context() as patch:
        patch.setattr("vllm_mxext.native.structured.checker._receive", interrupt)
        with pytest.raises(KeyboardInterrupt):
            checker.check(grammar(regex="(a"))
    checker.check(grammar(regex="a+"))


def test_a_process_that_died_between_two_grammars_is_no_verdict(checker: GrammarChecker) -> None:
    checker.check(grammar(regex="a+"))
    (process,) = [child for child in psutil.Process().children() if "check_process" in " ".join(child.cmdline())]
    process.kill()
    psutil.wait_procs([process])
    checker.check(grammar(regex="b+"))


def test_after_closing_nothing_is_started() -> None:
    checker = GrammarChecker(builtin.model_path(), VOCAB_SIZE, [2])
    checker.close()
    with pytest.raises(EngineNotReadyError):
        checker.check(grammar(regex="a+"))


def test_a_process_that_cannot_start_is_no_fault_of_the_request(tmp_path: Any) -> None:
    checker = GrammarChecker(tmp_path, VOCAB_SIZE, [2])
    with pytest.raises(EngineNotReadyError):
        checker.check(grammar(regex="a+"))


class CountingCheck:
    def __init__(self) -> None:
        self.grammars: list[str] = []

    def check(self, grammar: str) -> None:
        self.grammars.append(grammar)

    def close(self) -> None:
        """Nothing to release."""


def test_equal_constraints_are_tried_once_and_server_rules_hold() -> None:
    check = CountingCheck()
    admission = GrammarAdmission(
        FakeTokenizer(), check, disable_any_whitespace=True, disable_additional_properties=True
    )
    schema = {"type": "object", "properties": {"a": {}}}
    first = admission.grammar(StructuredOutputsParams(json=schema))
    assert admission.grammar(StructuredOutputsParams(json=dict(schema))) == first
    assert check.grammars == [first]
    assert '"whitespace_flexible": false' in first
    assert '"additionalProperties": false' in first
    own = admission.grammar(StructuredOutputsParams(json=schema, whitespace_pattern=" ?"))
    assert '"whitespace_pattern": " ?"' in own
