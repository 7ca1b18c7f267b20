"""`--speculative-config` and its short forms."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from vllm_mxext.config.app import parse_serve_args
from vllm_mxext.config.engine import EngineConfig, SpeculationConfig
from vllm_mxext.config.machine import Memory
from vllm_mxext.config.memory_plan import plan_memory
from vllm_mxext.config.resolve import Machine, resolve
from vllm_mxext.errors import ConfigError

HOST = Machine(num_cores=2, memory=Memory(10**9, 10**9))


def engine(*argv: str) -> EngineConfig:
    return resolve(parse_serve_args(argv, environ={}), HOST).engine


def config(**values: Any) -> str:
    return json.dumps(values)


@pytest.fixture
def draft(checkpoint: Path) -> Path:
    folder = checkpoint.parent / "draft"
    shutil.copytree(checkpoint, folder)
    return folder


def test_without_a_flag_there_are_no_drafts(checkpoint: Path) -> None:
    assert engine(str(checkpoint)).speculation is None
    assert engine(str(checkpoint)).scheduler.num_draft_tokens == 0


@pytest.mark.parametrize(
    ("values", "lookup"),
    [
        ({}, (5, 5)),
        ({"prompt_lookup_max": 4}, (4, 4)),
        ({"prompt_lookup_min": 3}, (3, 3)),
        ({"prompt_lookup_max": 4, "prompt_lookup_min": 2}, (2, 4)),
    ],
    ids=str,
)
def test_prompt_lookup_has_the_keys_and_defaults_of_vllm(
    checkpoint: Path, values: dict[str, int], lookup: tuple[int, int]
) -> None:
    argv = (str(checkpoint), "--speculative-config", config(method="ngram", num_speculative_tokens=4, **values))
    assert engine(*argv).speculation == SpeculationConfig("ngram", *lookup)
    assert engine(*argv).scheduler.num_draft_tokens == 4


def test_short_forms_are_the_same(checkpoint: Path, draft: Path) -> None:
    short = engine(str(checkpoint), "--spec-model", str(draft), "--spec-tokens", "3")
    long = engine(str(checkpoint), "--speculative-config", config(model=str(draft), num_speculative_tokens=3))
    assert short == long
    assert short.speculation is not None
    assert short.speculation.method == "draft_model"
    assert short.speculation.draft is not None
    assert short.speculation.draft.path == draft
    assert engine(str(checkpoint), "--spec-method", "ngram", "--spec-tokens", "2").scheduler.num_draft_tokens == 2


@pytest.mark.parametrize(
    ("argv", "part"),
    [
        (("--speculative-config", config(method="ngram")), "needs num_speculative_tokens"),
        (("--spec-tokens", "4"), "needs a method"),
        (("--spec-tokens", "4", "--spec-method", "draft_model"), "needs a model"),
        (("--speculative-config", config(method="eagle", num_speculative_tokens=4)), "later version"),
        (("--speculative-config", config(method="ngram", num_speculative_tokens=0)), "must be a whole number"),
        (("--speculative-config", config(metod="ngram")), "does not know 'metod'"),
        (
            ("--speculative-config", config(method="ngram", num_speculative_tokens=4, prompt_lookup_min=6,
                                            prompt_lookup_max=2)),
            "lower it",
        ),
        (("--speculative-config", config(num_speculative_tokens=4), "--spec-tokens", "5"), "contradicts"),
        (("--speculative-config", config(model="nowhere", num_speculative_tokens=4)), "no folder"),
        (("--spec-method", "ngram", "--spec-model", "x", "--spec-tokens", "1"), "means nothing with method ngram"),
    ],
    ids=str,
)  # fmt: skip
def test_what_does_not_fit_together_is_refused_in_a_sentence(
    checkpoint: Path, argv: tuple[str, ...], part: str
) -> None:
    with pytest.raises(ConfigError, match=part):
        engine(str(checkpoint), *argv)


@pytest.mark.promise("SPEC-5")
def test_a_draft_model_with_another_vocabulary_is_refused(checkpoint: Path, draft: Path) -> None:
    argv = (str(checkpoint), "--spec-model", str(draft), "--spec-tokens", "3")
    for folder, vocabulary in ((checkpoint, {"a": 0, "b": 1}), (draft, {"a": 1, "b": 0})):
        (folder / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}, "added_tokens": []}))
    with pytest.raises(ConfigError, match="other ids to tokens"):
        engine(*argv)
    path = draft / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "vocab_size": 511}))
    with pytest.raises(ConfigError, match="vocabulary of 511"):
        engine(*argv)


@pytest.mark.promise("MEM-1")
def test_an_automatic_length_leaves_room_for_the_draft_model(checkpoint: Path, draft: Path) -> None:
    argv = (str(checkpoint), "--max-model-len", "auto", "--kv-cache-memory-bytes", "100000")
    alone, drafted = engine(*argv), engine(*argv, "--spec-model", str(draft), "--spec-tokens", "3")
    assert drafted.speculation is not None
    assert drafted.speculation.draft is not None
    assert drafted.speculation.draft.max_model_len == drafted.model.max_model_len < alone.model.max_model_len
    plan = plan_memory(drafted, HOST.memory)
    assert plan.draft_weights_bytes * 2 == plan.weights_bytes
    assert "the draft model's" in plan.table()
