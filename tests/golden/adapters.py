"""Random adapters as PEFT writes them, and checkpoints with the same change merged into the weights."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file, save_file

from tests.golden.engine import BLOCK_SIZE, MAX_MODEL_LEN
from vllm_mxext import envs
from vllm_mxext.config.engine import (
    CacheConfig,
    DType,
    EngineConfig,
    LoRAConfig,
    ModelConfig,
    Quantization,
    SchedulerConfig,
)
from vllm_mxext.config.model_spec import ModelSpec, read_model_spec
from vllm_mxext.lora.source import inspect_adapter
from vllm_mxext.native.core_messages import AdapterSpec
from vllm_mxext.native.engine_builder import build_engine_core
from vllm_mxext.native.engine_core import EngineCore
from vllm_mxext.native.protocol import EngineCoreRequest
from vllm_mxext.native.worker.lora_slots import LoRASlots
from vllm_mxext.sampling_params import SamplingParams

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
_MAX_STEPS = 2_000


@dataclass(frozen=True)
class TinyAdapter:
    """One random adapter.

    Attributes:
        name: unique.
        rank: of all modules that `ranks` does not name.
        targets: its modules.
        alpha: PEFT's `lora_alpha`.
        ranks: module -> rank.
        uses_rslora: divide by the root of the rank.
        uses_dora: rows get lengths of their own.
        has_b_bias: PEFT's `lora_bias`.
        has_base_bias: PEFT's `bias="all"`: the model's own biases are trained too.
        saves: modules that are trained whole.
        layers: which layers it changes; None = all.
        seed: of its weights.
    """

    name: str
    rank: int
    targets: tuple[str, ...]
    alpha: float = 16.0
    ranks: Mapping[str, int] = field(default_factory=dict)
    uses_rslora: bool = False
    uses_dora: bool = False
    has_b_bias: bool = False
    has_base_bias: bool = False
    saves: tuple[str, ...] = ()
    layers: tuple[int, ...] | None = None
    seed: int = 0

    def write(self, base: Path, folder: Path) -> Path:
        """Writes the adapter's folder."""
        tensors = {name: tensor.contiguous() for name, tensor in self._tensors(base).items()}
        folder.mkdir(parents=True)
        save_file(tensors, folder / "adapter_model.safetensors")
        config = {
            "peft_type": "LORA",
            "task_type": "CAUSAL_LM",
            "base_model_name_or_path": "tiny",
            "r": self.rank,
            "lora_alpha": self.alpha,
            "rank_pattern": dict(self.ranks),
            "alpha_pattern": {},
            "target_modules": sorted(self.targets),
            "layers_to_transform": None if self.layers is None else list(self.layers),
            "use_rslora": self.uses_rslora,
            "use_dora": self.uses_dora,
            "lora_bias": self.has_b_bias,
            "bias": "all" if self.has_base_bias else "none",
            "modules_to_save": list(self.saves) or None,
            "fan_in_fan_out": False,
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return folder

    def merge(self, base: Path, adapter: Path, folder: Path) -> Path:
        """Writes a checkpoint whose weights have the adapter's change in them."""
        weights = load_checkpoint(base)
        tensors = load_file(adapter / "adapter_model.safetensors")
        for name in list(weights):
            module, _, kind = name.rpartition(".")
            own = f"base_model.model.{module}"
            if kind == "bias" and f"{own}.base_layer.bias" in tensors:
                weights[name] = tensors[f"{own}.base_layer.bias"]
            if kind != "weight":
                continue
            saved = tensors.get(f"{own}.weight")
            if saved is not None:
                weights[name] = saved
            if f"{own}.lora_embedding_A" in tensors:
                a, b = tensors[f"{own}.lora_embedding_A"], tensors[f"{own}.lora_embedding_B"]
                weights[name] = weights[name] + self.scaling(len(a)) * (b @ a).t()
            if f"{own}.lora_A.weight" not in tensors:
                continue
            a, b = tensors[f"{own}.lora_A.weight"], tensors[f"{own}.lora_B.weight"]
            scaling = self.scaling(len(a))
            changed = weights[name].double() + scaling * (b.double() @ a.double())
            if f"{own}.lora_magnitude_vector" in tensors:
                lengths = tensors[f"{own}.lora_magnitude_vector"].double()
                changed = changed * (lengths / changed.norm(dim=1))[:, None]
            weights[name] = changed.float()
            if f"{own}.lora_B.bias" in tensors:
                weights[f"{module}.bias"] = weights[f"{module}.bias"] + scaling * tensors[f"{own}.lora_B.bias"]
        config = json.loads((base / "config.json").read_text())
        if "lm_head.weight" not in weights:
            weights["lm_head.weight"] = load_checkpoint(base)["model.embed_tokens.weight"]
        config["tie_word_embeddings"] = False
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps(config))
        save_file({name: tensor.contiguous() for name, tensor in weights.items()}, folder / "model.safetensors")
        return folder

    def scaling(self, rank: int) -> float:
        """Factor on a module's product."""
        return self.alpha / (math.sqrt(rank) if self.uses_rslora else rank)

    def _tensors(self, base: Path) -> dict[str, torch.Tensor]:
        weights, spec = load_checkpoint(base), read_model_spec(base)
        generator = torch.Generator().manual_seed(1000 + self.seed)

        def noise(*shape: int, size: float = 1.0) -> torch.Tensor:
            return size * torch.randn(shape, generator=generator)

        tensors: dict[str, torch.Tensor] = {}
        for module in self._modules(spec):
            prefix, short = f"base_model.model.{module}", module.rpartition(".")[2]
            rank = self.ranks.get(short, self.rank)
            # The change is about a third as large as what is changed, whatever the rank.
            size = 0.5 / (self.scaling(rank) * math.sqrt(rank))
            if short == "embed_tokens":
                tensors[f"{prefix}.lora_embedding_A"] = noise(rank, spec.vocab_size)
                tensors[f"{prefix}.lora_embedding_B"] = noise(spec.hidden_size, rank, size=size)
                continue
            weight = weights[f"{module}.weight"]
            tensors[f"{prefix}.lora_A.weight"] = noise(rank, weight.shape[1], size=weight.shape[1] ** -0.5)
            tensors[f"{prefix}.lora_B.weight"] = noise(len(weight), rank, size=size)
            if self.uses_dora:
                tensors[f"{prefix}.lora_magnitude_vector"] = weight.norm(dim=1) * (1 + 0.2 * noise(len(weight)))
            if self.has_b_bias:
                tensors[f"{prefix}.lora_B.bias"] = noise(len(weight), size=0.1 / self.scaling(rank))
        if self.has_base_bias:
            for name, bias in weights.items():
                if name.endswith(".bias"):
                    tensors[f"base_model.model.{name.removesuffix('.bias')}.base_layer.bias"] = bias + noise(
                        len(bias), size=0.2
                    )
        for saved in self.saves:
            name = "lm_head.weight" if saved == "lm_head" else f"model.{saved}.weight"
            shape = weights["model.embed_tokens.weight"].shape
            size = 1.5 * shape[1] ** -0.5 if saved == "lm_head" else 1.0
            tensors[f"base_model.model.{name}"] = noise(*shape, size=size)
        return tensors

    def _modules(self, spec: ModelSpec) -> Iterator[str]:
        if "embed_tokens" in self.targets:
            yield "model.embed_tokens"
        for layer in range(spec.num_layers) if self.layers is None else self.layers:
            for name in (*ATTENTION, *MLP):
                if name in self.targets:
                    yield f"model.layers.{layer}.{'self_attn' if name in ATTENTION else 'mlp'}.{name}"
        if "lm_head" in self.targets:
            yield "lm_head"


def load_checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint."""
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


TWELVE = (
    TinyAdapter("one", 1, (*ATTENTION, *MLP)),
    TinyAdapter("two", 2, ("q_proj", "v_proj"), alpha=4.0),
    TinyAdapter("three", 3, MLP),
    TinyAdapter("four", 4, ("k_proj", "down_proj"), uses_rslora=True),
    TinyAdapter("eight", 8, (*ATTENTION, *MLP), ranks={"q_proj": 5, "down_proj": 11}),
    TinyAdapter("sixteen", 16, (*ATTENTION, *MLP), alpha=32.0),
    TinyAdapter("upper", 17, ("o_proj", "gate_proj"), layers=(2,)),
    TinyAdapter("thirty-two", 32, ("up_proj", "o_proj", "v_proj"), uses_rslora=True),
    TinyAdapter("dora", 8, (*ATTENTION, *MLP), uses_dora=True),
    TinyAdapter("head", 6, ("q_proj", "lm_head")),
    TinyAdapter("embedding", 7, ("embed_tokens", "k_proj")),
    TinyAdapter("sixty-four", 64, (*ATTENTION, *MLP), seed=3),
)
"""Ranks from 1 to 64, every module and variant."""


@dataclass(frozen=True)
class AdaptedPrompt:
    """A request.

    Attributes:
        token_ids: the prompt.
        adapter: name of its adapter; None = none.
        scale: factor on what the adapter adds.
        num_tokens: output tokens.
        params: all sampling parameters.
    """

    token_ids: tuple[int, ...]
    adapter: str | None = None
    scale: float = 1.0
    num_tokens: int = 12
    params: SamplingParams | None = None


class AdaptedEngine:
    """The engine core over adapters that are loaded from their folders.

    Attributes:
        core: the engine core.
        max_running: requests that have run at once.
        max_adapters: adapters of one step.
    """

    def __init__(
        self,
        model: Path,
        adapters: Mapping[str, Path],
        dtype: DType = "float32",
        *,
        kernels: str,
        lora: LoRAConfig | None = None,
        quantization: Quantization = "none",
        **fields: object,
    ) -> None:
        spec = read_model_spec(model)
        self.lora = lora or LoRAConfig(max_loras=len(adapters), max_lora_rank=64, max_cpu_loras=len(adapters))
        config = EngineConfig(
            ModelConfig(model, model, spec, dtype, MAX_MODEL_LEN, quantization),
            CacheConfig(block_size=BLOCK_SIZE, num_blocks_override=400),
            SchedulerConfig(max_num_batched_tokens=512, max_num_seqs=32),
            lora=self.lora,
        )
        config = replace(config, **fields)  # type: ignore[arg-type]
        with mock.patch.dict("os.environ", {envs.CPU_ISA.name: kernels}):
            self.core: EngineCore = build_engine_core(config, lambda _phase, _fraction: None)
        self._spec = spec
        self._specs: dict[str, AdapterSpec] = {}
        self._next_id = itertools.count(1)
        self.max_running = self.max_adapters = 0
        for name, folder in adapters.items():
            self.load(name, folder)

    def load(self, name: str, folder: Path, *, reads_now: bool = True) -> None:
        """Loads an adapter, or another one under the same name."""
        files = inspect_adapter(folder, self._spec, max_rank=self.lora.max_lora_rank)
        known = self._specs.get(name)
        adapter_id, generation = (known.adapter_id, known.generation + 1) if known else (next(self._next_id), 1)
        spec = AdapterSpec(adapter_id, generation, name, str(folder), files.format, files.fingerprint)
        self._specs[name] = spec
        self.core.load_adapter(spec, reads_now=reads_now)

    @property
    def store(self) -> LoRASlots:
        """Where adapters are read and placed."""
        adapters = self.core._adapters
        assert adapters is not None
        store = adapters._store
        assert isinstance(store, LoRASlots)
        return store

    def drop(self, name: str) -> None:
        """Unloads an adapter."""
        spec = self._specs.pop(name)
        self.core.drop_adapter(spec.adapter_id, spec.generation)

    def spec(self, name: str) -> AdapterSpec:
        """What the core was told of an adapter."""
        return self._specs[name]

    def add(self, request_id: str, prompt: AdaptedPrompt) -> None:
        """Queues a request."""
        params = prompt.params or SamplingParams(temperature=0.0, max_tokens=prompt.num_tokens, ignore_eos=True)
        spec = self._specs[prompt.adapter] if prompt.adapter else None
        self.core.add_request(
            EngineCoreRequest(
                request_id,
                list(prompt.token_ids),
                params,
                seed=0,
                adapter_id=spec.adapter_id if spec else 0,
                adapter_generation=spec.generation if spec else 0,
                adapter_scale=prompt.scale,
            )
        )

    def serve(self, prompts: Sequence[AdaptedPrompt]) -> list[list[int]]:
        """Serves requests together; returns their tokens."""
        tokens: list[list[int]] = [[] for _ in prompts]
        for index, prompt in enumerate(prompts):
            self.add(str(index), prompt)
        for _ in range(_MAX_STEPS):
            if not self.core.has_work:
                return tokens
            outputs = self.core.step()
            for output in outputs.outputs:
                assert output.error is None, output.error
                tokens[int(output.request_id)] += output.new_token_ids
            if outputs.stats is not None:
                self.max_running = max(self.max_running, outputs.stats.num_running)
                uses = outputs.stats.adapters or []
                self.max_adapters = max(self.max_adapters, sum(use.num_running > 0 for use in uses))
        raise AssertionError("The requests did not finish.")
