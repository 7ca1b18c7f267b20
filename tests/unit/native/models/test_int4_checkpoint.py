"""Int4 checkpoints: every packing is read exactly, and what cannot be read is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.int4_checkpoints import FORMATS, Int4Format, Tensors, save_int4
from vllm_mxext.config.engine import EngineConfig, LoadFormat, ModelConfig
from vllm_mxext.config.model_spec import parse_model_spec
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.core_messages import decode_config, encode_config
from vllm_mxext.native.kernels.interface import PackedLinear
from vllm_mxext.native.kernels.torch_kernels import TorchInt4Linear, TorchKernels
from vllm_mxext.native.models.decoder import DecoderWeights
from vllm_mxext.native.models.registry import checkpoint_layout
from vllm_mxext.native.models.weights import expected_tensors, load_weights

CPU = torch.device("cpu")
CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 40,
    "hidden_size": 64,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}

by_format = pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)


def save(folder: Path, form: Int4Format, change: Callable[[Tensors], None] = lambda _: None, **config: Any) -> Tensors:
    """Writes an int4 checkpoint of random weights; returns the weights it stands for."""
    values = {**CONFIG, **config}
    generator = torch.Generator().manual_seed(0)
    spec = parse_model_spec(values)
    shapes = expected_tensors(spec, checkpoint_layout(spec.architecture))
    plain = folder / "plain"
    plain.mkdir()
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    save_file(tensors, plain / "model.safetensors")
    exact = save_int4(plain, folder, form, values)
    path = folder / "model.safetensors"
    written = load_file(path)
    change(written)
    save_file(written, path)
    return exact


def load(folder: Path, dtype: torch.dtype = torch.float32, load_format: LoadFormat = "auto") -> DecoderWeights:
    spec = parse_model_spec(json.loads((folder / "config.json").read_text()))
    config = ModelConfig(folder, folder, spec, "float32", max_model_len=64, load_format=load_format)
    return load_weights(config, TorchKernels(CPU), dtype, CPU, lambda share: None)


def weight_of(layer: PackedLinear) -> torch.Tensor:
    """What a layer stands for, inputs in the model's order."""
    if not isinstance(layer, TorchInt4Linear):
        return layer.data.float()
    weight = layer.dequantise()
    if layer.input_order is None:
        return weight
    return torch.empty_like(weight).index_copy_(1, layer.input_order.long(), weight)


def linears(weights: DecoderWeights, layer: int) -> dict[str, PackedLinear]:
    """A decoder layer's linear layers by the modules stacked in them."""
    attention, mlp = weights.layers[layer].attention, weights.layers[layer].mlp
    return {
        "self_attn.q_proj self_attn.k_proj self_attn.v_proj": attention.qkv.packed,
        "self_attn.o_proj": attention.output.packed,
        "mlp.gate_proj mlp.up_proj": mlp.gate_up.packed,
        "mlp.down_proj": mlp.down.packed,
    }


@pytest.mark.promise("INT4-1")
@by_format
def test_every_weight_is_read_exactly(form: Int4Format, tmp_path: Path) -> None:
    exact = save(tmp_path, form)
    weights = load(tmp_path)
    for layer in range(2):
        for modules, packed in linears(weights, layer).items():
            names = [f"model.layers.{layer}.{module}.weight" for module in modules.split()]
            assert isinstance(packed, TorchInt4Linear) == (not modules.endswith(form.plain_suffix))
            assert torch.equal(weight_of(packed), torch.cat([exact[name] for name in names]).float()), modules
    assert torch.equal(weights.head.packed.data, exact["lm_head.weight"])


@pytest.mark.promise("INT4-1")
@by_format
def test_biases_that_the_model_has_are_read(form: Int4Format, tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        tensors |= biases

    biases = {
        f"model.layers.{layer}.self_attn.{name}_proj.bias": torch.randn(64 if name in "qo" else 32).half()
        for layer in range(2)
        for name in "qkvo"
    }
    save(tmp_path, form, change, attention_bias=True)
    bias = load(tmp_path).layers[1].attention.qkv.packed.bias
    assert bias is not None
    assert torch.equal(
        bias, torch.cat([biases[f"model.layers.1.self_attn.{name}_proj.bias"] for name in "qkv"]).float()
    )


def test_a_zero_of_sixteen_means_none(tmp_path: Path) -> None:
    """GPTQ stores zeros less one in four bits, and kernels drop the carry."""

    def change(tensors: Tensors) -> None:
        tensors["model.layers.0.mlp.down_proj.qzeros"].fill_(-1)

    save(tmp_path, FORMATS[0], change)
    layer = load(tmp_path).layers[0].mlp.down.packed
    assert isinstance(layer, TorchInt4Linear)
    assert not layer.zeros.any()


@pytest.mark.promise("INT4-1")
def test_bfloat16_scales_are_kept_exactly(tmp_path: Path) -> None:
    name = "model.layers.0.mlp.down_proj.weight_scale"
    scales: Tensors = {}

    def change(tensors: Tensors) -> None:
        scales[name] = tensors[name] = tensors[name].bfloat16()

    save(tmp_path, next(form for form in FORMATS if form.name == "packed_g128"), change)
    layer = load(tmp_path).layers[0].mlp.down.packed
    assert isinstance(layer, TorchInt4Linear)
    assert torch.equal(layer.scales.float(), scales[name].float())


@pytest.mark.promise("INT4-1")
def test_an_output_head_can_be_int4_too(tmp_path: Path) -> None:
    form = Int4Format("head", "compressed-tensors", 32, symmetric=True)
    save(tmp_path, form)
    path, config = tmp_path / "model.safetensors", json.loads((tmp_path / "config.json").read_text())
    tensors = load_file(path)
    del tensors["lm_head.weight"]
    head = {"weight_packed": torch.full((40, 8), 0x77777777).int(), "weight_scale": torch.ones(40, 2).half()}
    save_file({**tensors, **{f"lm_head.{part}": value for part, value in head.items()}}, path)
    config["quantization_config"]["ignore"] = []
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert torch.equal(weight_of(load(tmp_path).head.packed), -torch.ones(40, 64))


@by_format
def test_dummy_weights_are_int4_where_the_checkpoint_is(form: Int4Format, tmp_path: Path) -> None:
    save(tmp_path, form)
    (tmp_path / "model.safetensors").unlink()
    for packed in linears(load(tmp_path, load_format="dummy"), 0).values():
        weight = weight_of(packed)
        assert 0.005 < float(weight.std()) < 0.02
        assert float(weight.abs().max()) <= 0.0226  # nine scales: a zero of 9 in the formats that store zeros less one


@by_format
def test_the_engine_process_is_told_of_int4_weights(form: Int4Format, tmp_path: Path) -> None:
    spec = parse_model_spec({**CONFIG, "quantization_config": form.quantization_config()})
    config = EngineConfig(ModelConfig(tmp_path, tmp_path, spec, "float32", max_model_len=64))
    assert decode_config(encode_config(config)) == config


@pytest.mark.promise("INT4-2")
@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("qweight", lambda tensor: tensor[:-1], r"wrong shape: model\.layers\.0\.mlp\.down_proj\.qweight"),
        ("scales", lambda tensor: tensor[:1], r"wrong shape: .*scales"),
        ("qweight", lambda tensor: tensor.half(), r"qweight is of type F16; the native engine reads I32"),
        ("g_idx", lambda tensor: tensor.clamp(max=6), r"down_proj \(g_idx\) are not of 32 inputs each"),
    ],
)
def test_broken_tensors_are_refused(
    part: str, change: Callable[[torch.Tensor], torch.Tensor], message: str, tmp_path: Path
) -> None:
    def apply(tensors: Tensors) -> None:
        name = f"model.layers.0.mlp.down_proj.{part}"
        tensors[name] = change(tensors[name]).contiguous()

    save(tmp_path, next(form for form in FORMATS if form.name == "gptq_desc_act"), apply)
    with pytest.raises(ConfigError, match=message):
        load(tmp_path)


@pytest.mark.promise("INT4-2")
def test_stacked_layers_with_different_groups_are_refused(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        name = "model.layers.1.mlp.up_proj.g_idx"
        tensors[name] = tensors[name].flip(0)

    save(tmp_path, next(form for form in FORMATS if form.name == "gptq_desc_act"), change)
    with pytest.raises(ConfigError, match=r"gate_proj, model\.layers\.1\.mlp\.up_proj group their inputs differently"):
        load(tmp_path)
