"""Loading checkpoints: what is read, and what is refused."""

from __future__ import annotations

import json
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vllm_mxext.config.engine import LoadFormat, ModelConfig
from vllm_mxext.config.model_spec import SUPPORTED_ARCHITECTURES, parse_model_spec
from vllm_mxext.errors import ConfigError
from vllm_mxext.native.kernels.torch_kernels import TorchKernels
from vllm_mxext.native.models.checkpoint import SafetensorsSource
from vllm_mxext.native.models.decoder import DecoderWeights
from vllm_mxext.native.models.registry import checkpoint_layout
from vllm_mxext.native.models.weights import expected_tensors, load_weights

CPU = torch.device("cpu")
SPEC = parse_model_spec(
    {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 33,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "attention_bias": True,
    }
)
INDEX = "model.safetensors.index.json"
FILE = "model.safetensors"

Tensors = dict[str, torch.Tensor]


def make_tensors(dtype: torch.dtype = torch.float32) -> Tensors:
    generator = torch.Generator().manual_seed(0)
    shapes = expected_tensors(SPEC, checkpoint_layout(SPEC.architecture))
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def load(
    folder: Path, dtype: torch.dtype = torch.float32, load_format: LoadFormat = "auto", seed: int = 0
) -> tuple[DecoderWeights, list[float]]:
    config = ModelConfig(folder, folder, SPEC, "float32", max_model_len=64, load_format=load_format, seed=seed)
    progress: list[float] = []
    return load_weights(config, TorchKernels(CPU), dtype, CPU, progress.append), progress


def save(folder: Path, change: Callable[[Tensors], None] = lambda _tensors: None) -> Tensors:
    tensors = make_tensors()
    change(tensors)
    save_file(tensors, folder / FILE)
    return tensors


def check_layer(weights: DecoderWeights, tensors: Tensors, layer: int) -> None:
    prefix = f"model.layers.{layer}."
    attention, mlp = weights.layers[layer].attention, weights.layers[layer].mlp
    qkv = [tensors[f"{prefix}self_attn.{name}_proj.weight"] for name in "qkv"]
    biases = [tensors[f"{prefix}self_attn.{name}_proj.bias"] for name in "qkv"]
    gate_up = [tensors[f"{prefix}mlp.{name}_proj.weight"] for name in ("gate", "up")]
    assert torch.equal(attention.qkv.packed.data, torch.cat(qkv))
    assert attention.qkv.packed.bias is not None
    assert torch.equal(attention.qkv.packed.bias, torch.cat(biases))
    assert torch.equal(attention.output.packed.data, tensors[f"{prefix}self_attn.o_proj.weight"])
    assert torch.equal(mlp.gate_up.packed.data, torch.cat(gate_up))
    assert mlp.gate_up.packed.bias is None
    assert torch.equal(mlp.down.packed.data, tensors[f"{prefix}mlp.down_proj.weight"])
    assert torch.equal(weights.layers[layer].mlp_norm.weight, tensors[f"{prefix}post_attention_layernorm.weight"])


def embedded(weights: DecoderWeights, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """The embedding of every token."""
    out = torch.empty(SPEC.vocab_size, SPEC.hidden_size, dtype=dtype)
    weights.embedding(torch.arange(SPEC.vocab_size, dtype=torch.int32), out)
    return out


@pytest.mark.promise("LOAD-1")
def test_every_tensor_arrives_in_its_place_and_stays_there(tmp_path: Path) -> None:
    tensors = save(tmp_path)
    weights, progress = load(tmp_path)
    (tmp_path / FILE).write_bytes(b"gone")  # nothing is read later
    assert torch.equal(embedded(weights), tensors["model.embed_tokens.weight"])
    assert torch.equal(weights.head.packed.data, tensors["lm_head.weight"])
    assert torch.equal(weights.final_norm.weight, tensors["model.norm.weight"])
    for layer in range(SPEC.num_layers):
        check_layer(weights, tensors, layer)
    assert progress == sorted(progress)
    assert progress[-1] == 1.0


@pytest.mark.promise("LOAD-1")
def test_shards_are_found_through_the_index(tmp_path: Path) -> None:
    tensors = make_tensors()
    names = list(tensors)
    weight_map = {name: f"part-{index % 3}.safetensors" for index, name in enumerate(names)}
    for file_name in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == file_name}, tmp_path / file_name)
    (tmp_path / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    weights, _ = load(tmp_path)
    for layer in range(SPEC.num_layers):
        check_layer(weights, tensors, layer)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_are_converted(tmp_path: Path, dtype: torch.dtype) -> None:
    tensors = save(tmp_path)
    weights, _ = load(tmp_path, dtype)
    assert torch.equal(embedded(weights, dtype), tensors["model.embed_tokens.weight"].to(dtype))
    qkv = weights.layers[0].attention.qkv.packed
    assert qkv.data.dtype == dtype
    assert qkv.bias is not None
    assert qkv.bias.dtype == torch.float32


def test_values_too_large_for_float16_are_refused(tmp_path: Path) -> None:
    save(tmp_path, lambda tensors: tensors["model.layers.1.mlp.up_proj.weight"].fill_(1e6))
    load(tmp_path, torch.bfloat16)
    with pytest.raises(ConfigError, match=r"layers\.1\.mlp\.up_proj\.weight .* use --dtype bfloat16 or float32"):
        load(tmp_path, torch.float16)


def test_missing_unexpected_and_misshapen_tensors_are_all_named(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        del tensors["model.layers.0.self_attn.q_proj.weight"]
        tensors["model.layers.7.extra"] = torch.zeros(1)
        tensors["model.norm.weight"] = torch.zeros(17)

    save(tmp_path, change)
    with pytest.raises(ConfigError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert "missing: model.layers.0.self_attn.q_proj.weight;" in message
    assert "unexpected: model.layers.7.extra;" in message
    assert "wrong shape: model.norm.weight [17] instead of [16]" in message


def test_many_problems_are_counted_instead_of_listed(tmp_path: Path) -> None:
    save_file({"nothing": torch.zeros(1)}, tmp_path / FILE)
    total = len(make_tensors())
    with pytest.raises(ConfigError, match=f"and {total - 5} more"):
        load(tmp_path)


def test_rotary_buffers_of_older_checkpoints_are_ignored(tmp_path: Path) -> None:
    save(tmp_path, lambda tensors: tensors.update({"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(2)}))
    load(tmp_path)


@pytest.mark.parametrize("keep", [0, 4, 100, -64, -1])
def test_a_truncated_file_is_refused(tmp_path: Path, keep: int) -> None:
    save(tmp_path)
    content = (tmp_path / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(content[:keep])
    with pytest.raises(ConfigError, match=r"model\.safetensors is corrupt or truncated .*download"):
        load(tmp_path)


def test_a_file_of_noise_is_refused(tmp_path: Path) -> None:
    (tmp_path / FILE).write_bytes(b"\x00\x01\x02\x03" * 100)
    with pytest.raises(ConfigError, match="corrupt or truncated"):
        load(tmp_path)


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "3",
        "{",
        '{"a": {"dtype": "F32", "shape": [2]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}',
        '{"a": {"dtype": "F32", "shape": [2], "data_offsets": [-4, 4]}}',
        '{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 8]}}',
        '{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}}',
    ],
)
def test_a_damaged_header_is_refused(tmp_path: Path, header: str) -> None:
    (tmp_path / FILE).write_bytes(struct.pack("<Q", len(header)) + header.encode() + bytes(8))
    with pytest.raises(ConfigError, match="corrupt or truncated"):
        load(tmp_path)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    save(tmp_path)
    source = SafetensorsSource(tmp_path)
    (tmp_path / FILE).write_bytes((tmp_path / FILE).read_bytes()[:2000])
    name = "lm_head.weight"
    with pytest.raises(ConfigError, match="is cut off"):
        source.read(name, torch.empty(33, 16))


def test_integer_tensors_are_refused(tmp_path: Path) -> None:
    def change(tensors: Tensors) -> None:
        name = "model.layers.0.self_attn.o_proj.weight"
        tensors[name] = tensors[name].to(torch.int8)

    save(tmp_path, change)
    with pytest.raises(ConfigError, match=r"o_proj\.weight is of type I8; the native engine reads BF16"):
        load(tmp_path)


def test_a_folder_without_weights_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"no model\.safetensors .*safetensors checkpoints only"):
        load(tmp_path)


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX).write_text(json.dumps({"weight_map": {"a": "part-1.safetensors", "b": "part-2.safetensors"}}))
    save_file({"a": torch.zeros(1)}, tmp_path / "part-1.safetensors")
    with pytest.raises(ConfigError, match=r"lacks part-2\.safetensors of its index"):
        load(tmp_path)


@pytest.mark.parametrize("content", ["{", "{}", "[]", '{"weight_map": 3}'])
def test_a_broken_index_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(ConfigError, match=r"index\.json is broken"):
        load(tmp_path)


def test_dummy_weights_need_no_files_and_follow_the_seed(tmp_path: Path) -> None:
    folder = tmp_path / "empty"
    first, _ = load(folder, load_format="dummy", seed=1)
    again, _ = load(folder, load_format="dummy", seed=1)
    other, _ = load(folder, load_format="dummy", seed=2)
    data = [weights.layers[1].attention.qkv.packed.data for weights in (first, again, other)]
    assert torch.equal(data[0], data[1])
    assert not torch.equal(data[0], data[2])
    assert not torch.equal(data[0], first.layers[0].attention.qkv.packed.data)
    assert float(data[0].std()) > 0


def test_every_architecture_that_is_accepted_has_a_layout() -> None:
    layouts = [checkpoint_layout(architecture) for architecture in SUPPORTED_ARCHITECTURES]
    assert len(layouts) >= 4


def test_an_unknown_architecture_names_those_supported() -> None:
    with pytest.raises(ConfigError, match=r"FooForCausalLM is not supported.*LlamaForCausalLM"):
        checkpoint_layout("FooForCausalLM")


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads peak memory from Linux's /proc")
def test_loading_takes_little_more_memory_than_the_weights(tmp_path: Path) -> None:
    program = """
import json, sys
from pathlib import Path
import torch
from vllm_mxext.config.engine import ModelConfig
from vllm_mxext.config.model_spec import SUPPORTED_ARCHITECTURES, parse_model_spec
from vllm_mxext.native.kernels.torch_kernels import TorchKernels
from vllm_mxext.native.models.weights import load_weights

def memory(field):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))

folder, spec, cpu = Path(sys.argv[1]), parse_model_spec(json.loads(sys.argv[2])), torch.device("cpu")
config = ModelConfig(folder, folder, spec, "float32", max_model_len=64)
before = memory("VmRSS")
weights = load_weights(config, TorchKernels(cpu), torch.float32, cpu, lambda share: None)
print(weights.num_bytes, memory("VmHWM") - before)
"""
    values = {
        "architectures": ["LlamaForCausalLM"],
        "vocab_size": 1000,
        "hidden_size": 512,
        "intermediate_size": 1024,
        "num_hidden_layers": 16,
        "num_attention_heads": 8,
        "num_key_value_heads": 8,
    }
    shapes = expected_tensors(parse_model_spec(values), checkpoint_layout("LlamaForCausalLM"))
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, tmp_path / FILE)
    command = [sys.executable, "-c", program, str(tmp_path), json.dumps(values)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    weights_bytes, peak_bytes = (int(word) for word in output.split())
    assert weights_bytes > 160 * 2**20
    assert peak_bytes < 1.1 * weights_bytes + 16 * 2**20
