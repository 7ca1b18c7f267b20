"""Writes a Qwen3 checkpoint as GGUF for llama.cpp: `make_gguf.py CHECKPOINT OUTPUT bf16|q8_0`.

The weights are the checkpoint's own; in `q8_0` every matrix, embedding and tied head included, has a float16 scale for
every 32 values. There is no tokenizer in the file: the benchmark speaks in token ids.

Runs in the llama.cpp environment: needs `numpy` and `gguf`, and reads safetensors files by itself.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TYPES = {
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_LAYER = re.compile(r"model\.layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class StoredTensor:
    """A bfloat16 tensor in a safetensors file."""

    name: str
    shape: tuple[int, ...]
    path: Path
    offset: int

    def read(self) -> np.ndarray:
        """Returns its values as float32."""
        words = np.memmap(self.path, np.uint16, "r", self.offset, self.shape)
        return (words.astype(np.uint32) << 16).view(np.float32)


def stored_tensors(checkpoint: Path) -> Iterator[StoredTensor]:
    """Yields all tensors of a folder."""
    for path in sorted(checkpoint.glob("*.safetensors")):
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        for name, entry in header.items():
            if entry["dtype"] != "BF16":
                raise SystemExit(f"{name} in {path} is {entry['dtype']}; only checkpoints in BF16 can be written.")
            yield StoredTensor(name, tuple(entry["shape"]), path, 8 + length + entry["data_offsets"][0])


def gguf_name(name: str) -> str:
    """Returns the name of a tensor in llama.cpp.

    Raises:
        KeyError: the tensor is not one of Qwen3's.
    """
    stem = name.removesuffix(".weight")
    if match := _LAYER.fullmatch(stem):
        return f"blk.{match[1]}.{NAMES[match[2]]}.weight"
    return f"{NAMES[stem]}.weight"


def add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], file_type: gguf.LlamaFileType) -> None:
    """Writes the model's dimensions."""
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_head_count(config["num_attention_heads"])
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_theta"])
    writer.add_tokenizer_model("no_vocab")


def write(checkpoint: Path, output: Path, form: str) -> None:
    """Writes the file, one tensor in memory at a time."""
    matrix_type, file_type = TYPES[form]
    partial = output.with_suffix(".partial")
    writer = gguf.GGUFWriter(partial, "qwen3")
    add_metadata(writer, json.loads((checkpoint / "config.json").read_text()), file_type)
    tensors = list(stored_tensors(checkpoint))
    for tensor in tensors:
        dtype = matrix_type if len(tensor.shape) == 2 else gguf.GGMLQuantizationType.F32
        shape = gguf.quant_shape_to_byte_shape(tensor.shape, dtype) if len(tensor.shape) == 2 else tensor.shape
        num_bytes = int(np.prod(shape)) * (1 if len(tensor.shape) == 2 else 4)
        element = np.dtype(np.uint8 if len(tensor.shape) == 2 else np.float32)
        writer.add_tensor_info(gguf_name(tensor.name), shape, element, num_bytes, raw_dtype=dtype)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        values = tensor.read()
        writer.write_tensor_data(gguf.quants.quantize(values, matrix_type) if values.ndim == 2 else values)
    writer.close()
    partial.rename(output)


if __name__ == "__main__":
    write(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
