"""What files are by their content: hidden pickles, programs, and names that are not true."""

from __future__ import annotations

import io
import json
import pickle
import pickletools
import struct
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save

from vllm_mxext.errors import UnsafeFileError
from vllm_mxext.hub.content_safety import check_content

BUILTIN = Path(__file__).parents[3] / "vllm_mxext" / "builtin"


def torch_file(*, is_zip: bool) -> bytes:
    stream = io.BytesIO()
    torch.save({"a": torch.ones(3)}, stream, _use_new_zipfile_serialization=is_zip)
    return stream.getvalue()


def archive(**entries: bytes) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        for name, content in entries.items():
            file.writestr(name.replace("_", "."), content)
    return stream.getvalue()


def array(values: object) -> bytes:
    stream = io.BytesIO()
    np.save(stream, np.array(values), allow_pickle=True)
    return stream.getvalue()


def safetensors(header: object, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


PICKLES = {
    **{f"protocol {number}": pickle.dumps({"a": 1}, protocol=number) for number in (2, 3, 4, 5)},
    "protocol 0 with a call": b"cos\nsystem\n(S'true'\ntR.",
    "torch": torch_file(is_zip=True),
    "torch before 1.6": torch_file(is_zip=False),
    "zip": archive(x_pkl=b"anything"),
    "broken zip": archive(a=b"b")[:-10],
    "objects": array([{}]),
    "objects in an archive": archive(a_npy=array([{}])),
    "hdf5": b"\x89HDF\r\n\x1a\n" + bytes(100),
}
PROGRAMS = {
    "elf": Path(sys.executable).resolve().read_bytes()[:5000],
    "script": b"#!/bin/sh\ntrue\n",
    "exe": b"MZ" + bytes(100),
    "mach-o": b"\xcf\xfa\xed\xfe" + bytes(100),
    "wasm": b"\0asm\1\0\0\0",
}


def check(folder: Path, content: bytes, name: str, *, pickles: bool = False, code: bool = False) -> None:
    (folder / "file").write_bytes(content)
    check_content(folder / "file", name, allows_pickle=pickles, allows_code=code)


@pytest.mark.promise("HUB-SAFE-2")
@pytest.mark.parametrize("kind", PICKLES)
def test_a_pickle_is_found_under_any_name(tmp_path: Path, kind: str) -> None:
    for name in ("tokenizer.model", "weights", "a.json"):
        with pytest.raises(
            UnsafeFileError, match=rf"The file '{name}' is refused: it is a pickle or holds some.*allow_"
        ):
            check(tmp_path, PICKLES[kind], name, code=True)
        check(tmp_path, PICKLES[kind], name, pickles=True)
    with pytest.raises(
        UnsafeFileError, match=r"'model\.safetensors' is refused: it is not safetensors, as its name says"
    ):
        check(tmp_path, PICKLES[kind], "model.safetensors", pickles=True, code=True)
    with pytest.raises(UnsafeFileError, match="it is not GGUF, as its name says"):
        check(tmp_path, PICKLES[kind], "model.GGUF", pickles=True, code=True)


@pytest.mark.promise("HUB-SAFE-2")
@pytest.mark.parametrize("kind", PROGRAMS)
def test_a_program_is_found_under_any_name(tmp_path: Path, kind: str) -> None:
    with pytest.raises(UnsafeFileError, match=r"'config' is refused: it is a program.*trust_remote_code"):
        check(tmp_path, PROGRAMS[kind], "config", pickles=True)
    check(tmp_path, PROGRAMS[kind], "config", code=True)


def test_files_of_ordinary_models_pass(tmp_path: Path) -> None:
    for file in BUILTIN.rglob("*"):
        if file.is_file():
            check_content(file, file.name, allows_pickle=False, allows_code=False)
    for name, content in {
        "model.safetensors": save({"a": torch.ones(3), "b": torch.ones(0)}),
        "empty.safetensors": save({}),
        "m.gguf": b"GGUF\3\0\0\0",
        "a.npy": array([1.5, 2.0]),
        "a.npz": archive(a_npy=array([1])),
        "tokenizer.model": b"\n\x0e\n\x05<unk>\x15\0\0\0\0\x18\x02",
        "README.md": b"MZ is not only a magic number\n",
        "nothing": b"",
    }.items():
        check(tmp_path, content, name)


@pytest.mark.promise("HUB-SAFE-2")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\1",
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 3) + b"{}",
        safetensors(b"[]"),
        safetensors(b" {}"),
        safetensors(b"{" * 100_000),
        safetensors({}, b"x"),
        safetensors({"a": 3}),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, b"123"),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [1, 4]}}, b"1234"),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4.0]}}, b"1234"),
        safetensors({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 4]}}, b"1234"),
        save({"a": torch.ones(3)})[:-1],
    ],
    ids=range(14),
)
def test_what_only_looks_like_safetensors_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(UnsafeFileError, match="it is not safetensors, as its name says, or it is damaged"):
        check(tmp_path, content, "model.safetensors")


def test_the_signs_of_pickles_are_those_of_the_library() -> None:
    opcodes = [
        next(iter(pickletools.genops(content)))[0].name for content in PICKLES.values() if content[:1] == b"\x80"
    ]
    assert set(opcodes) == {"PROTO"}
