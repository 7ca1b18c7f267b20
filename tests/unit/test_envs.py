"""Environment variables are typed, strict and documented."""

from __future__ import annotations

from pathlib import Path

import pytest

from vllm_mxext import envs
from vllm_mxext.envs import EnvVar, parse_bool
from vllm_mxext.errors import ConfigError


@pytest.mark.parametrize("text", ["1", "true", "YES", " on "])
def test_words_for_true(text: str) -> None:
    assert parse_bool(text) is True


@pytest.mark.parametrize("text", ["0", "False", "no", "OFF"])
def test_words_for_false(text: str) -> None:
    assert parse_bool(text) is False


@pytest.mark.parametrize("text", ["2", "", "enabled", "y", "-1"])
def test_every_other_word_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="must be 1, true"):
        parse_bool(text)


def test_an_unset_or_empty_variable_is_the_default() -> None:
    assert envs.JSONL_LOGGING.get({}) is False
    assert envs.JSONL_LOGGING.get({"VLLM_MXEXT_JSONL_LOGGING": ""}) is False


def test_the_process_environment_is_read_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MXEXT_KERNEL_DIR", "/somewhere")
    assert envs.KERNEL_DIR.get() == Path("/somewhere")


def test_a_secret_value_is_not_in_the_error() -> None:
    secret: EnvVar[bool] = EnvVar("SECRET", parse_bool, default=False, help="A secret.", is_secret=True)
    with pytest.raises(ConfigError) as caught:
        secret.get({"SECRET": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_every_variable_has_a_sentence_of_help() -> None:
    names = [variable.name for variable in envs.VARIABLES]
    assert len(set(names)) == len(names)
    assert all(variable.help.endswith(".") for variable in envs.VARIABLES)
