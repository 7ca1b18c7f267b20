"""Makes adapters of the built-in model that answer differently, and finds out what each of them answers alone.

An answer is known from a server that has no other adapter in memory and caches no prefix.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from vllm_mxext.bench.server_process import OUR_SERVER, ServerProcess
from vllm_mxext.builtin import adapter_path, model_path
from vllm_mxext.config.model_spec import read_model_spec
from vllm_mxext.lora.convert import write_adapter
from vllm_mxext.lora.files import StoredTensor
from vllm_mxext.lora.source import inspect_adapter

UPDATES_VARIABLE = "VLLM_ALLOW_RUNTIME_LORA_UPDATING"

BASE = "base"
"""Stands for the model without an adapter among the names of variants."""

_ALPHAS = {"math_tuned": (32, 64), "code_tuned": (16, 40)}
_RANDOM_RANKS = (4, 8, 12, 16, 24, 32)
_STRENGTH = 0.4
"""Standard deviation of the second matrices of random adapters: enough for other words."""

_STORY = "Anna has 12 birds and buys 30 more. Tom has 4 boxes with 7 books in each box. "


@dataclass(frozen=True)
class Question:
    """A greedy request whose answer is known for every variant.

    Attributes:
        path: where it is sent.
        fields: its body, without model and stream.
    """

    path: str
    fields: Mapping[str, Any]

    def body(self, model: str, **changes: Any) -> dict[str, Any]:
        """Returns the body of the request."""
        return {"model": model, **self.fields, **changes}


@dataclass(frozen=True)
class Answer:
    """What a choice says, and why it ends."""

    text: str
    finish_reason: str


Answers = Mapping[str, Sequence[Answer]]
"""Variant -> its answer to every question."""


def questions() -> list[Question]:
    """Returns chats and texts to continue, some of them longer than a few KV blocks."""
    chats = ((f"{_STORY}What is the derivative of 3x^2 + 4x?", 40), (f"{_STORY * 2}Write a function.", 96))
    texts = ((f"{_STORY}How many birds does Anna have?", 32), ("def plus_7(n):", 160))
    options = {"temperature": 0, "ignore_eos": True}
    return [
        *(
            Question(
                "/v1/chat/completions",
                {"messages": [{"role": "user", "content": text}], "max_tokens": length, **options},
            )
            for text, length in chats
        ),
        *(Question("/v1/completions", {"prompt": text, "max_tokens": length, **options}) for text, length in texts),
    ]


def make_variants(folder: Path) -> dict[str, Path]:
    """Writes the built-in adapters with several strengths, and random ones; returns name -> folder."""
    variants = {}
    for name, alphas in _ALPHAS.items():
        for alpha in alphas:
            variant = folder / f"{name}-{alpha}"
            shutil.copytree(adapter_path(name), variant)
            config_file = variant / "adapter_config.json"
            config_file.write_text(json.dumps({**json.loads(config_file.read_text()), "lora_alpha": alpha}))
            variants[variant.name] = variant
    for seed, rank in enumerate(_RANDOM_RANKS):
        variants[f"random-{seed}"] = _write_random(folder / f"random-{seed}", rank, seed)
    return variants


def _write_random(folder: Path, rank: int, seed: int) -> Path:
    """Writes an adapter with the modules of a built-in one, another rank and random weights."""
    spec = read_model_spec(model_path())
    adapter = inspect_adapter(adapter_path("math_tuned"), spec, max_rank=512)
    randomness = np.random.default_rng(seed)
    modules = {
        key: replace(
            module,
            rank=rank,
            scaling=1.0,
            a=_random_tensor((rank, module.a.shape[1]), module.a.shape[1] ** -0.5, randomness),
            b=_random_tensor((module.b.shape[0], rank), _STRENGTH, randomness),
        )
        for key, module in adapter.modules.items()
    }
    write_adapter(replace(adapter, modules=modules), folder, "huggingface")
    return folder


def _random_tensor(shape: tuple[int, int], deviation: float, randomness: np.random.Generator) -> StoredTensor:
    values = (randomness.standard_normal(shape) * deviation).astype(np.float32)
    return StoredTensor(shape, "float32", lambda: values)


def write_over(source: Path, target: Path, *, renames: bool) -> None:
    """Puts the files of one adapter in the place of another's.

    Args:
        source: folder with the new files.
        target: folder that holds files of the same names.
        renames: new files take the names of the old ones; otherwise the old ones are written over.
    """
    target.mkdir(exist_ok=True)
    for file in source.iterdir():
        content = file.read_bytes()
        if renames:
            fresh = target / f".{file.name}"
            fresh.write_bytes(content)
            os.replace(fresh, target / file.name)
        else:
            (target / file.name).write_bytes(content)


def answers_alone(variants: Mapping[str, Path], asked: Sequence[Question], log: Path) -> Answers:
    """Starts a server, loads one variant after the other under a name of its own, and asks.

    Raises:
        ValueError: two variants answer a question alike, so that one could be taken for the other.
    """
    command = [*OUR_SERVER, "--no-enable-prefix-caching", "--max-loras", "1", "--max-model-len", "1024"]
    environ = {**os.environ, UPDATES_VARIABLE: "true", "VLLM_MXEXT_LOG_LEVEL": "WARNING"}
    with ServerProcess(command, log, environ=environ) as server:
        server.wait_for()
        with httpx.Client(base_url=server.url, timeout=120.0, trust_env=False) as client:
            model = client.get("/v1/models").json()["data"][0]["id"]
            answers = {BASE: _ask(client, model, asked)}
            for name, path in variants.items():
                body = {"lora_name": name, "lora_path": str(path)}
                client.post("/v1/load_lora_adapter", json=body).raise_for_status()
                answers[name] = _ask(client, name, asked)
                client.post("/v1/unload_lora_adapter", json={"lora_name": name}).raise_for_status()
    for index in range(len(asked)):
        _require_different({name: given[index] for name, given in answers.items()})
    return answers


def choices_of(answer: Mapping[str, Any]) -> list[Answer]:
    """Returns the choices of an answer in one piece, in their order."""
    return [
        Answer(choice["text"] if "text" in choice else choice["message"]["content"], choice["finish_reason"])
        for choice in sorted(answer["choices"], key=lambda choice: int(choice["index"]))
    ]


def joined_events(events: Iterable[Mapping[str, Any]]) -> list[Answer]:
    """Returns the choices of a streamed answer, in their order."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for event in events:
        for choice in event["choices"]:
            piece = choice["text"] if "text" in choice else choice["delta"].get("content") or ""
            texts[choice["index"]] = texts.get(choice["index"], "") + piece
            if choice["finish_reason"] is not None:
                reasons[choice["index"]] = choice["finish_reason"]
    return [Answer(texts[index], reasons.get(index, "none")) for index in sorted(texts)]


def _ask(client: httpx.Client, model: str, asked: Sequence[Question]) -> list[Answer]:
    answers = []
    for question in asked:
        response = client.post(question.path, json=question.body(model))
        response.raise_for_status()
        answers += choices_of(response.json())
    return answers


def _require_different(answers: Mapping[str, Answer]) -> None:
    seen: dict[Answer, str] = {}
    for name, answer in answers.items():
        if answer in seen:
            raise ValueError(f"{name} and {seen[answer]} answer alike: {answer}")
        seen[answer] = name
