"""`write_model()`: a small folder that looks like a model's repository."""

from __future__ import annotations

import json
import random
from pathlib import Path

_HEADER = 128


def write_model(folder: Path, weight_bytes: int = 300_000, seed: int = 0) -> Path:
    """Writes a configuration, a tokenizer, two shards of random weights and a file in a sub-folder."""
    noise = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    shards = [f"model-{number:05}-of-00002.safetensors" for number in (1, 2)]
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "hidden_size": 8, "seed": seed}))
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "note": "naïve"}))
    index = {"metadata": {}, "weight_map": {f"layer.{number}": shard for number, shard in enumerate(shards)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for number, shard in enumerate(shards):
        (folder / shard).write_bytes(_safetensors(f"layer.{number}", weight_bytes // 2 + number, noise))
    (folder / "original").mkdir(exist_ok=True)
    (folder / "original" / "params with space.json").write_text("{}")
    return folder


def _safetensors(name: str, size: int, noise: random.Random) -> bytes:
    """Returns a file of so many bytes with one tensor in it."""
    entry = {"dtype": "U8", "shape": [size - 8 - _HEADER], "data_offsets": [0, size - 8 - _HEADER]}
    header = json.dumps({name: entry}).encode().ljust(_HEADER)
    return _HEADER.to_bytes(8, "little") + header + noise.randbytes(size - 8 - _HEADER)
