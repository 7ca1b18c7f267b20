"""Adapters give the tokens of a model that has them merged into its weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch

from tests.golden.adapters import ATTENTION, MLP, TWELVE, AdaptedEngine, AdaptedPrompt, TinyAdapter
from tests.golden.comparison import make_prompts
from tests.golden.conftest import Checkpoint
from tests.golden.engine import kernel_sets
from tests.golden.models import FAMILY_MODELS, MODELS, TinyModel
from tests.golden.reference import Reference
from vllm_mxext.config.engine import DType, LoRAConfig, SchedulerConfig, SpeculationConfig
from vllm_mxext.sampling_params import SamplingParams

all_kernels = pytest.mark.parametrize("kernels", kernel_sets())
LLAMA, QWEN2 = (model for model in FAMILY_MODELS if model.name in ("llama", "qwen2"))
PROMPTS = [prompt.token_ids for prompt in make_prompts((3, 20, 41))]


@dataclass
class Adapted:
    """Adapters of one model with what transformers says of them.

    Attributes:
        model: the model's folder.
        folders: adapter -> its folder.
        references: adapter or None -> the model with the adapter merged into its weights.
    """

    model: Path
    folders: dict[str, Path]
    references: dict[str | None, Reference]

    def check(self, prompts: Sequence[AdaptedPrompt], tokens: Sequence[list[int]]) -> None:
        """Checks that these are the greedy tokens of merged weights: each is the best one after those before it."""
        for prompt, output in zip(prompts, tokens, strict=True):
            assert len(output) == prompt.num_tokens
            best = self.references[prompt.adapter].logits(prompt.token_ids, output).argmax(-1)
            assert output == best.tolist(), f"Adapter {prompt.adapter} says something else."


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
        result = Adapted(base, {}, {None: Reference(base, torch.float32)})
        for adapter in adapters:
            result.folders[adapter.name] = adapter.write(base, folder / adapter.name)
            path = adapter.merge(base, result.folders[adapter.name], folder / f"{adapter.name}-merged")
            result.references[adapter.name] = Reference(path, torch.float32)
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
    prompts = [AdaptedPrompt(prompt, name) for name in (None, *case.folders) for prompt in PROMPTS[1:]]
    tokens = engine.serve(prompts)
    case.check(prompts, tokens)
    assert engine.max_running == len(prompts)
    assert engine.max_adapters == len(case.folders)
    assert len({str(tokens[index : index + 2]) for index in range(0, len(tokens), 2)}) == len(case.folders) + 1


@pytest.mark.promise("LORA-6")
@all_kernels
def test_more_adapters_than_slots_and_host_places_give_the_same_tokens(kernels: str, adapted: Adapters) -> None:
    case = adapted(LLAMA)
    lora = LoRAConfig(max_loras=3, max_lora_rank=64, max_cpu_loras=5)
    engine = AdaptedEngine(case.model, case.folders, kernels=kernels, lora=lora)
    prompts = [AdaptedPrompt(prompt, name) for prompt in PROMPTS for name in (*case.folders, None)]
    case.check(prompts, engine.serve(prompts))
    assert engine.max_adapters == 3


@pytest.mark.promise("LORA-3")
@all_kernels
def test_a_scale_multiplies_everything_that_an_adapter_adds(kernels: str, adapted: Adapters, tmp_path: Path) -> None:
    case, name = adapted(LLAMA), "sixteen"
    (adapter,) = (one for one in TWELVE if one.name == name)
    half = replace(adapter, alpha=adapter.alpha / 2).merge(case.model, case.folders[name], tmp_path / "half")
    by_scale = {0.5: Reference(half, torch.float32), 0.0: case.references[None], 1.0: case.references[name]}
    engine = AdaptedEngine(case.model, case.folders, kernels=kernels)
    prompts = [AdaptedPrompt(prompt, name, scale) for prompt in PROMPTS for scale in by_scale]
    for prompt, tokens in zip(prompts, engine.serve(prompts), strict=True):
        assert tokens == by_scale[prompt.scale].logits(prompt.token_ids, tokens).argmax(-1).tolist()


@pytest.mark.promise("LORA-1")
@all_kernels
def test_prompt_log_probabilities_are_those_of_the_adapter(kernels: str, adapted: Adapters, tmp_path: Path) -> None:
    case = adapted(LLAMA)
    names = ("sixteen", "head", None, "embedding")
    engine = AdaptedEngine(case.model, case.folders, kernels=kernels)
    params = SamplingParams(temperature=0.0, max_tokens=1, prompt_logprobs=0)
    prompt = PROMPTS[2]
    for name in names:
        engine.add(str(name), AdaptedPrompt(prompt, name, params=params))
    told: dict[str, list[float]] = {str(name): [] for name in names}
    while engine.core.has_work:
        for output in engine.core.step().outputs:
            told[output.request_id] += [one.logprobs[0] for one in output.prompt_logprobs or ()]
    for name in names:
        logits = case.references[name].logits(prompt[:1], prompt[1:])
        expected = logits.log_softmax(-1).gather(1, torch.tensor(prompt[1:])[:, None])[:, 0]
        torch.testing.assert_close(torch.tensor(told[str(name)]), expected, rtol=0, atol=1e-4)


@pytest.mark.promise("LORA-1")
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_tokens_are_the_same_alone_and_beside_other_adapters(dtype: DType, adapted: Adapters) -> None:
    case, kernels = adapted(LLAMA), kernel_sets()[-1]
    engine = AdaptedEngine(case.model, case.folders, dtype, kernels=kernels)
    prompts = [AdaptedPrompt(prompt, name) for prompt in PROMPTS for name in (*case.folders, None)]
    together = engine.serve(prompts)
    for prompt, tokens in zip(prompts, together, strict=True):
        engine.core.reset_prefix_cache()
        assert engine.serve([prompt]) == [tokens]


@pytest.mark.promise("LORA-1")
@all_kernels
def test_drafts_do_not_change_what_an_adapter_says(kernels: str, adapted: Adapters) -> None:
    case = adapted(LLAMA)
    limits = SchedulerConfig(max_num_batched_tokens=512, max_num_seqs=32, num_draft_tokens=3)
    engine = AdaptedEngine(
        case.model,
        case.folders,
        kernels=kernels,
        scheduler=limits,
        speculation=SpeculationConfig("ngram", prompt_lookup_min=1, prompt_lookup_max=3),
    )
    prompts = [AdaptedPrompt(prompt, name) for prompt in PROMPTS for name in (None, *case.folders)]
    case.check(prompts, engine.serve(prompts))


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
    merged = adapter.merge(base, folder, tmp_path / "merged")
    case = Adapted(
        base, {"own": folder}, {None: Reference(base, torch.float32), "own": Reference(merged, torch.float32)}
    )
    engine = AdaptedEngine(base, case.folders, kernels=kernels)
    prompts = [AdaptedPrompt(prompt, name) for prompt in PROMPTS for name in ("own", None)]
    tokens = engine.serve(prompts)
    case.check(prompts, tokens)
    assert tokens[0] != tokens[1]
