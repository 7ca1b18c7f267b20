"""How plug-ins for logits are found, and how they refuse parameters."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import logging

import pytest

from tests.engine_fakes import engine_config
from tests.logits_plugins import Careless, OnlyToken, SecondThought
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.errors import ConfigError, InvalidRequestError
from vllm_mxext.logits_processors import ENTRY_POINTS, VLLM_ENTRY_POINTS, check_params, load_logits_processors
from vllm_mxext.requests import GenerateRequest, TextPrompt
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("SAMP-10")

ONLY = "tests.logits_plugins:OnlyToken"


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Group -> what is installed in it."""
    groups: dict[str, list[str]] = {}

    def find(*, group: str) -> list[importlib.metadata.EntryPoint]:
        return [importlib.metadata.EntryPoint("one", value, group) for value in groups.get(group, ())]

    monkeypatch.setattr(importlib.metadata, "entry_points", find)
    return groups


def test_plug_ins_come_from_both_groups_and_from_names_each_once(entry_points: dict[str, list[str]]) -> None:
    entry_points[ENTRY_POINTS] = [ONLY]
    entry_points[VLLM_ENTRY_POINTS] = ["tests.logits_plugins:SecondThought"]
    assert load_logits_processors([ONLY]) == (OnlyToken, SecondThought)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tests.logits_plugins.OnlyToken", "not of the form module:Class"),
        ("tests.no_such_module:A", "cannot be imported .ModuleNotFoundError"),
        ("tests.logits_plugins:Nothing", "cannot be imported .AttributeError"),
        ("tests.logits_plugins:Batchwise", "processors of whole batches are not taken"),
        ("tests.logits_plugins:argument", "no method new_req_logits_processor"),
    ],
)
def test_what_cannot_be_used_keeps_the_engine_from_starting(
    entry_points: dict[str, list[str]], name: str, reason: str
) -> None:
    with pytest.raises(ConfigError, match=reason):
        load_logits_processors([name])
    entry_points[ENTRY_POINTS] = [name]
    with pytest.raises(ConfigError, match=reason):
        load_logits_processors([])


def test_plug_ins_for_vllm_that_cannot_be_used_are_left_out(
    entry_points: dict[str, list[str]], caplog: pytest.LogCaptureFixture
) -> None:
    entry_points[VLLM_ENTRY_POINTS] = ["tests.logits_plugins:Batchwise"]
    with caplog.at_level(logging.WARNING):
        assert load_logits_processors([]) == ()
    assert "left out" in caplog.text


def test_a_request_that_a_plug_in_refuses_is_not_admitted() -> None:
    config = dataclasses.replace(engine_config(), logits_processors=(ONLY,))
    processor = InputProcessor(config, FakeTokenizer(), lambda: 0)

    def process(only: object) -> None:
        params = SamplingParams(max_tokens=4, extra_args={"only": only})
        processor.process(GenerateRequest("r", TextPrompt("hi"), params), 0.0)

    process(5)
    with pytest.raises(InvalidRequestError, match="OnlyToken: only must be a token id") as error:
        process("five")
    assert error.value.param == "vllm_xargs"


def test_an_exception_in_a_check_refuses_its_request() -> None:
    with pytest.raises(InvalidRequestError, match="Careless"):
        check_params([Careless], SamplingParams())


def test_arguments_that_nobody_reads_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="none is loaded"):
        check_params([], SamplingParams(extra_args={"only": 3}))
