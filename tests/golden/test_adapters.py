"""Adapters give the tokens of a model that has them merged into its weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.golden.adapters import ATTENTION, MLP, TWELVE, AdaptedEngine, AdaptedPrompt, TinyAdapter
from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import kernel_sets
from tests.golden.models import FAMILY_MODELS, MODELS, TinyModel
from tests.golden.reference import Reference
from vllm_mxext.config.engine import LoRAConfig

all_kernels = pytest.mark.parametrize("kernels", kernel_sets())
LLAMA, QWEN2 = (model for model in FAMILY_MODELS if model.name in ("llama", "qwen2"))
PROMPTS = [prompt.token_ids for prompt in make_prompts((3, 20, 41))]
NUM_TOKENS = 12


@dataclass
class Adapted:
    """Adapters of one model with what transformers says of them.

    Attributes:
        model: the model's folder.
        folders: adapter -> its folder.
        expected: (adapter or None, prompt) -> greedy tokens of the merged weights.
    """

    model: Path
    folders: dict[str, Path]
    expected: dict[tuple[str | None, tuple[int, ...]], list[int]]


Adapters = Callable[[TinyModel], Adapted]


@pytest.fixture(scope="module")
def adapted(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Adapters:
    """The twelve adapters of a model; those of modules that it ties are left out."""
    made: dict[str, Adapted] = {}

    def make(model: TinyModel) -> Adapted:
        if model.name in made:
            return made[model.name]
        base, folder = checkpoint(model, "float32"), tmp_path_factory.mktemp("adapters")
        is_tied = bool(model.values.get("tie_word_embeddings"))
        adapters = [one for one in TWELVE if not (is_tied and {"lm_head", "embed_tokens"} & set(one.targets))]
        result = Adapted(base, {}, {})
        merged: list[tuple[str | None, Path]] = [(None, base)]
        for adapter in adapters:
            result.folders[adapter.name] = adapter.write(base, folder / adapter.name)
            path = adapter.merge(base, result.folders[adapter.name], folder / f"{adapter.name}-merged")
            merged.append((adapter.name, path))
        for name, path in merged:
            reference = Reference(path, torch.float32)
            for prompt in PROMPTS:
                result.expected[name, prompt] = reference.greedy(prompt, NUM_TOKENS)
        made[model.name] = result
        return result

    return make


def _name(model: TinyModel) -> str:
    return model.name


@pytest.mark.promise("LORA-1")
@all_kernels
@pytest.mark.parametrize("model", [LLAMA, QWEN2], ids=_name)
def test_adapters_of_mixed_ranks_in_one_batch_with_base_requests_give_the_tokens_of_merged_weights(
    model: TinyModel, kernels: str, adapted: Adapters
) -> None:
    case = adapted(model)
    engine = AdaptedEngine(case.model, case.folders, kernels=kernels)
    asked = [(name, prompt) for prompt in PROMPTS[:2] for name in (None, *case.folders)]
    tokens = engine.serve([AdaptedPrompt(prompt, name, num_tokens=NUM_TOKENS) for name, prompt in asked])
    assert tokens == [case.expected[key] for key in asked]
    assert engine.max_running == len(asked)
    assert engine.max_adapters == len(case.folders)
    by_adapter = {name: [case.expected[name, prompt] for prompt in PROMPTS] for name in (None, *case.folders)}
    assert len({str(tokens) for tokens in by_adapter.values()}) == len(by_adapter)


@pytest.mark.promise("LORA-6")
@all_kernels
def test_more_adapters_than_slots_and_host_places_give_the_same_tokens(kernels: str, adapted: Adapters) -> None:
    case = adapted(LLAMA)
    lora = LoRAConfig(max_loras=3, max_lora_rank=64, max_cpu_loras=5)
    engine = AdaptedEngine(case.model, case.folders, kernels=kernels, lora=lora)
    asked = [(name, prompt) for prompt in PROMPTS for name in (*case.folders, None)]
    tokens = engine.serve([AdaptedPrompt(prompt, name, num_tokens=NUM_TOKENS) for name, prompt in asked])
    assert tokens == [case.expected[key] for key in asked]
    assert engine.max_adapters == 3


EXTRAS = (
    (QWEN2, TinyAdapter("base bias", 4, ATTENTION, has_base_bias=True)),
    (QWEN2, TinyAdapter("b bias", 4, ("q_proj", "k_proj", "v_proj"), has_b_bias=True)),
    (QWEN2, TinyAdapter("dora", 4, (*ATTENTION, *MLP), uses_dora=True)),
    (LLAMA, TinyAdapter("saved", 4, ("q_proj",), saves=("embed_tokens", "lm_head"))),
    (LLAMA, TinyAdapter("saved head", 4, ("down_proj",), saves=("lm_head",))),
    (next(model for model in MODELS if model.name == "qwen3"), TinyAdapter("qwen3", 9, (*ATTENTION, *MLP))),
    (next(model for model in MODELS if model.name == "mistral_window"), TinyAdapter("m", 9, (*ATTENTION, *MLP))),
    (
        next(model for model in MODELS if model.name == "llama_biases_mqa"),
        TinyAdapter("dora with biases", 5, (*ATTENTION, *MLP), uses_dora=True, has_base_bias=True),
    ),
)


@pytest.mark.promise("LORA-2")
@all_kernels
@pytest.mark.parametrize(("model", "adapter"), EXTRAS, ids=lambda one: one.name.replace(" ", "_"))
def test_every_variant_of_an_adapter_gives_the_tokens_of_merged_weights(
    model: TinyModel, adapter: TinyAdapter, kernels: str, checkpoint: Checkpoint, tmp_path: Path
) -> None:
    base = checkpoint(model, "float32")
    folder = adapter.write(base, tmp_path / "adapter")
    reference = Reference(adapter.merge(base, folder, tmp_path / "merged"), torch.float32)
    plain = Reference(base, torch.float32)
    engine = AdaptedEngine(base, {"own": folder}, kernels=kernels)
    prompts = [AdaptedPrompt(prompt, name) for prompt in PROMPTS for name in ("own", None)]
    tokens = engine.serve(prompts)
    expected = [
        (reference if prompt.adapter else plain).greedy(prompt.token_ids, prompt.num_tokens) for prompt in prompts
    ]
    assert tokens == expected
    assert tokens[0] != tokens[1]
