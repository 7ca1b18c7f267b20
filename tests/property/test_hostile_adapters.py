"""Broken and hostile adapter files give an `AdapterError`, never another exception, and never take much memory."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.adapter_files import (
    GGUF_ADAPTER,
    SPEC,
    gguf_bytes,
    nemo_name,
    peft_tensors,
    plain_adapter,
    random_pairs,
    write_nemo,
    write_peft,
    write_trtllm,
)
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.source import inspect_adapter

pytestmark = pytest.mark.promise("LORA-FORMAT-3")
NUM_MUTATIONS = 150
NUM_SPARSE_BYTES = 2**33
MAX_BYTES = 64 * 2**20
Maker = Callable[[Path], Path]


def make_peft(folder: Path) -> Path:
    return plain_adapter(folder / "a", rank_pattern={"x": 1}, base_model_name_or_path="x") / "adapter_model.safetensors"


def make_config(folder: Path) -> Path:
    return make_peft(folder).with_name("adapter_config.json")


def make_bin(folder: Path) -> Path:
    return write_peft(folder / "a", peft_tensors(random_pairs({"q_proj": 4})), is_bin=True) / "adapter_model.bin"


def make_nemo(folder: Path) -> Path:
    name = "lora_dense_attention_adapter"
    tensors = {nemo_name(0, name, "in"): torch.ones(4, 64), nemo_name(0, name, "out"): torch.ones(32, 4)}
    return write_nemo(folder / "a.nemo", tensors, {"alpha": 4})


def make_trtllm(folder: Path) -> Path:
    return write_trtllm(folder / "a", [(1, 0, 4)], [np.ones(4 * 96, dtype=np.float32)]) / "model.lora_weights.npy"


def make_trtllm_config(folder: Path) -> Path:
    return make_trtllm(folder).with_name("model.lora_config.npy")


def make_gguf(folder: Path) -> Path:
    pair = {side: (0, np.ones(shape, dtype=np.float32)) for side, shape in (("a", (4, 32)), ("b", (64, 4)))}
    path = folder / "a.gguf"
    path.write_bytes(gguf_bytes(GGUF_ADAPTER, {f"blk.0.attn_q.weight.lora_{side}": one for side, one in pair.items()}))
    return path


MAKERS: list[Maker] = [make_peft, make_config, make_bin, make_nemo, make_trtllm, make_trtllm_config, make_gguf]


def adapter_path(file: Path) -> Path:
    return file if file.suffix in (".nemo", ".gguf") else file.parent


def inspect_or_refuse(file: Path) -> bool:
    """Inspects and reads everything; any exception but `AdapterError` fails the test."""
    try:
        adapter = inspect_adapter(adapter_path(file), SPEC, max_rank=16, allows_pickle=True)
        for module in adapter.modules.values():
            module.a.read()
            module.b.read()
    except AdapterError:
        return False
    return True


@contextmanager
def little_memory() -> Iterator[None]:
    tracemalloc.start()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < MAX_BYTES
    finally:
        tracemalloc.stop()


def mutated(content: bytes, chance: random.Random) -> bytes:
    """Some bytes of the part that describes the file changed, or the file cut, or a part of it doubled."""
    changed = bytearray(content)
    kind = chance.randrange(4)
    place = chance.randrange(min(len(content), chance.choice((64, 1024, len(content)))))
    if kind == 0:
        del changed[place:]
    elif kind == 1:
        changed[place:place] = content[place : place + chance.randrange(1, 64)]
    else:
        for _ in range(chance.randrange(1, 4)):
            extreme = bytes([chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))])
            length = chance.choice((1, 1, 4, 8))
            changed[place : place + length] = extreme * length
            place = chance.randrange(len(content))
    return bytes(changed)


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_mutated_files_are_read_or_refused(tmp_path: Path, make: Maker) -> None:
    file = make(tmp_path)
    assert inspect_or_refuse(file)
    content = file.read_bytes()
    chance = random.Random(make.__name__)
    outcomes = set()
    with little_memory():
        for _ in range(NUM_MUTATIONS):
            file.write_bytes(mutated(content, chance))
            outcomes.add(inspect_or_refuse(file))
    assert outcomes == {True, False}


def safetensors(header: dict[str, Any] | bytes, data: bytes = b"\0" * 4096) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape: list[Any], begin: int, end: int, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


A, B = (f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 8,
        struct.pack("<Q", 2**62) + b"{}",
        safetensors(b"["),
        safetensors(b"[" * 1_000_000),
        safetensors({A: entry([4, 32], 0, 512), B: entry([64, 4], 256, 1280)}),
        safetensors({A: entry([4, 32], 0, 512), B: entry([64, 4], 600, 1624)}),
        safetensors({A: entry([4, 32], 0, 512), B: entry([64, 4], 512, 1536)}, data=b""),
        safetensors({A: entry([4, 32], -512, 0)}),
        safetensors({A: entry([2**40, 2**40], 0, 2**82)}),
        safetensors({A: entry([-1, -128], 0, 512)}),
        safetensors({A: entry([4.0, 32], 0, 512)}),
        safetensors({A: entry([True, 128], 0, 512)}),
        safetensors({A: entry([4, 32], 0, 512, "F8_E4M3")}),
        safetensors({A: entry([0, 2**62], 0, 0), B: entry([2**62, 0], 0, 0)}),
        safetensors({A: "text"}),
        safetensors({"x" * 2_000_000: entry([1], 0, 4)}),
    ],
)
def test_hostile_safetensors_headers_are_refused(tmp_path: Path, content: bytes) -> None:
    file = make_peft(tmp_path)
    file.write_bytes(content)
    with little_memory():
        assert not inspect_or_refuse(file)


def test_a_header_of_a_great_many_tensors_is_refused(tmp_path: Path) -> None:
    file = make_peft(tmp_path)
    header = {str(index): entry([0], 0, 0) for index in range(200_000)}
    file.write_bytes(safetensors(header))
    with little_memory():
        assert not inspect_or_refuse(file)


@pytest.mark.parametrize(
    "header",
    [
        struct.pack("<4sIQQ", b"GGUF", 3, 2**63, 0),
        struct.pack("<4sIQQ", b"GGUF", 3, 0, 2**63),
        struct.pack("<4sIQQQ", b"GGUF", 3, 0, 1, 2**63),
        struct.pack("<4sIQQQ1sIIQ", b"GGUF", 3, 0, 1, 1, b"x", 9, 0, 2**62),
        struct.pack("<4sIQQQ1sI", b"GGUF", 3, 0, 1, 1, b"x", 9) + struct.pack("<IQ", 9, 1) * 10_000,
        struct.pack("<4sIQQQ1sI4QIQ", b"GGUF", 3, 1, 0, 1, b"x", 4, *[2**62] * 4, 0, 0),
        struct.pack("<4sIQQQ1sI", b"GGUF", 3, 1, 0, 1, b"x", 2**31),
    ],
)
def test_hostile_gguf_headers_are_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "a.gguf"
    file.write_bytes(header + b"\0" * 64)
    with little_memory():
        assert not inspect_or_refuse(file)


@pytest.mark.parametrize(
    "program",
    [
        b"\x80\x02r\xff\xff\xff\x7f.",
        b"\x80\x02}r\xff\xff\xff\x7fj\xff\xff\xff\x7e.",
        b"\x80\x02X\xff\xff\xff\x7fa.",
        b"\x80\x04\x8d" + b"\xff" * 7 + b"\x7fa.",
        b"\x80\x02cos\nsystem\nX\x02\x00\x00\x00ls\x85R.",
        b"\x80\x04\x8c\x02os\x8c\x06system\x93.",
        b"\x80\x02ccollections\nOrderedDict\n(}tR.",
        b"\x80\x02}(K\x01K\x02u.",
        b"\x80\x02)" + b"q\x00h\x00\x86" * 200 + b"}q\x01h\x00K\x01s.",
        b"\x80\x02}}b.",
        b"\x80\x02tuR.",
        b"\x80\x02Qb.",
        b"(((.",
        b"",
    ],
)
def test_hostile_pickles_are_refused(tmp_path: Path, program: bytes) -> None:
    file = make_bin(tmp_path)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", program)
    with little_memory():
        assert not inspect_or_refuse(file)


@pytest.mark.parametrize("config", [b"[" * 100_000, b"a: &a {<<: [{}]}", b"- a\n" * 100_000])
def test_hostile_configs_of_nemo_are_refused(tmp_path: Path, config: bytes) -> None:
    file = tmp_path / "a.nemo"
    with tarfile.open(file, "w:") as archive:
        for name, content in (("model_config.yaml", config), ("model_weights.ckpt", b"")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    with little_memory():
        assert not inspect_or_refuse(file)


@pytest.mark.parametrize("program", [b"}" * 1_000_000, b"N" * 1_000_000, b"(" * 1_000_000 + b"."])
def test_pickles_that_pile_up_values_are_refused(tmp_path: Path, program: bytes) -> None:
    test_hostile_pickles_are_refused(tmp_path, program)


def test_sparse_files_of_many_gigabytes_are_refused_without_being_read(tmp_path: Path) -> None:
    for make in MAKERS:
        folder = tmp_path / make.__name__
        folder.mkdir()
        file = make(folder)
        content = file.read_bytes()
        with file.open("r+b") as stream:
            stream.truncate(NUM_SPARSE_BYTES)
            stream.seek(NUM_SPARSE_BYTES - len(content))
            stream.write(content)
        with little_memory():
            inspect_or_refuse(file)
