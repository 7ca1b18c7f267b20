"""Finding out formats, the fingerprint, and what is refused before a format is known."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.adapter_files import GGUF_ADAPTER, SPEC, gguf_bytes, plain_adapter, write_trtllm
from vllm_mxext.config.model_spec import read_model_spec
from vllm_mxext.errors import AdapterError
from vllm_mxext.lora.files import AdapterFiles
from vllm_mxext.lora.source import TrtllmLoraSource, inspect_adapter

pytestmark = pytest.mark.promise("LORA-FORMAT-2")
BUILTIN = Path(__file__).parents[3] / "vllm_mxext" / "builtin"


def inspect(path: Path, **options: Any) -> AdapterFiles:
    return inspect_adapter(path, SPEC, max_rank=16, **options)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(AdapterError) as caught:
        inspect(path, **options)
    assert caught.value.param == "lora_path"
    return str(caught.value)


def test_the_adapters_that_ship_fit_the_built_in_model() -> None:
    spec = read_model_spec(BUILTIN / "mx-tiny")
    for name, rank in (("math_tuned", 16), ("code_tuned", 8)):
        adapter = inspect_adapter(BUILTIN / "adapters" / name, spec, max_rank=16)
        assert (adapter.rank, adapter.base_model_name) == (rank, "mx-tiny")


def test_what_is_no_adapter_is_told_from_one(tmp_path: Path) -> None:
    assert "does not exist" in refusal(tmp_path / "nothing")
    assert "holds no adapter: neither adapter_config.json" in refusal(tmp_path)
    plain_adapter(tmp_path / "one")
    plain_adapter(tmp_path / "two")
    assert "holds adapters (one, two), but is none itself" in refusal(tmp_path)
    assert f"give its folder {tmp_path / 'one'}" in refusal(tmp_path / "one" / "adapter_model.safetensors")
    assert "serve it with --model" in refusal(BUILTIN / "mx-tiny")
    (tmp_path / "one" / "adapter_config.json").unlink()
    assert "no adapter_config.json; copy that too" in refusal(tmp_path / "one")
    (tmp_path / "two" / "adapter_model.safetensors").unlink()
    assert "neither adapter_model.safetensors nor adapter_model.bin" in refusal(tmp_path / "two")


def test_a_format_can_be_asked_for(tmp_path: Path) -> None:
    plain_adapter(tmp_path)
    write_trtllm(tmp_path, [(1, 0, 1)], [torch.ones(96).numpy()])
    assert inspect(tmp_path).format == "huggingface"
    assert inspect(tmp_path, form="trtllm").format == "trtllm"
    assert "no adapter of the format gguf" in refusal(tmp_path, form="gguf")
    for name in ("a.gguf", "b.gguf"):
        (tmp_path / name).write_bytes(gguf_bytes(GGUF_ADAPTER, {}))
    assert "2 files (a.gguf, b.gguf) that end in .gguf" in refusal(tmp_path, form="gguf")


def test_the_fingerprint_changes_with_the_files_that_are_used(tmp_path: Path) -> None:
    path = plain_adapter(tmp_path / "a")
    first = inspect(path).fingerprint
    (path / "README.md").write_text("new")
    assert inspect(path).fingerprint == first
    os.utime(path / "adapter_config.json", ns=(1, 1))
    second = inspect(path).fingerprint
    shutil.copy2(path / "adapter_model.safetensors", path / "copy")
    os.replace(path / "copy", path / "adapter_model.safetensors")
    assert len({first, second, inspect(path).fingerprint}) == 3


def test_links_out_of_the_folder_are_refused_but_the_cache_of_hugging_face_is_read(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    plain_adapter(blobs)
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).symlink_to(Path("../../blobs") / name)
    assert inspect(folder).rank == 4
    (tmp_path / "link").symlink_to(folder)
    assert inspect(tmp_path / "link").rank == 4
    elsewhere = plain_adapter(tmp_path / "elsewhere")
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.safetensors").symlink_to(elsewhere / "adapter_model.safetensors")
    assert "link out of the adapter's folder" in refusal(folder)


def test_an_adapter_in_the_store_of_the_hub_is_read(tmp_path: Path) -> None:
    blobs, folder = tmp_path / "blobs", tmp_path / "models" / "acme--math" / "abc"
    plain_adapter(blobs)
    folder.mkdir(parents=True)
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        (folder / name).symlink_to(Path("../../../blobs") / name)
    assert inspect(folder).rank == 4
    os.replace(blobs, tmp_path / "elsewhere")
    (folder / "adapter_config.json").unlink()
    (folder / "adapter_config.json").symlink_to(tmp_path / "elsewhere" / "adapter_config.json")
    assert "link out of the adapter's folder" in refusal(folder)


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    path = plain_adapter(tmp_path)
    (path / "adapter_model.safetensors").unlink()
    os.mkfifo(path / "adapter_model.safetensors")
    assert "not a regular file" in refusal(path)
    (path / "adapter_model.safetensors").unlink()
    (path / "adapter_model.safetensors").symlink_to("adapter_model.safetensors")
    refusal(path)


def test_weights_that_have_gone_or_shrunk_since_are_an_adapter_error(tmp_path: Path) -> None:
    path = plain_adapter(tmp_path)
    adapter = inspect(path)
    file = path / "adapter_model.safetensors"
    os.truncate(file, file.stat().st_size - 4)
    with pytest.raises(AdapterError, match="ends in the middle"):
        _read_all(adapter)
    assert "outside of it" in refusal(path)
    file.unlink()
    with pytest.raises(AdapterError, match="cannot be read"):
        _read_all(adapter)


def _read_all(adapter: AdapterFiles) -> None:
    for module in adapter.modules.values():
        module.a.read()
        module.b.read()


def test_a_source_lists_checks_and_converts_the_adapters_of_a_folder(tmp_path: Path) -> None:
    folder = tmp_path / "adapters"
    plain_adapter(folder / "a")
    plain_adapter(folder / "b", rank=20)
    (folder / "notes").mkdir()
    source = TrtllmLoraSource(folder, SPEC, max_rank=16)
    assert source.names() == ["a", "b"]
    assert source.inspect("a").rank == 4
    with pytest.raises(AdapterError, match="--max-lora-rank 20"):
        source.inspect("b")
    with pytest.raises(AdapterError, match=r"no adapter named '\.\.'; it holds a, b"):
        source.inspect("..")
    source.convert("a", tmp_path / "converted", "trtllm")
    assert inspect(tmp_path / "converted").format == "trtllm"
    with pytest.raises(AdapterError, match="cannot be read"):
        TrtllmLoraSource(tmp_path / "nothing", SPEC, max_rank=16).names()


def test_paths_that_cannot_be_looked_at_are_refused(tmp_path: Path) -> None:
    refusal(tmp_path / "a\0b")
    assert "cannot be read" in refusal(tmp_path / ("x" * 5000))


def test_names_in_messages_are_printable(tmp_path: Path) -> None:
    path = plain_adapter(tmp_path, base_model_name_or_path="\x1b[31m" + "x" * 1000, rank_pattern={"layers.0.*": 5})
    message = refusal(path)
    assert message.isprintable()
    assert len(message) < 700
