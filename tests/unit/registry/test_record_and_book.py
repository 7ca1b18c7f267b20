"""What is registered is checked, kept as a whole, and never lost to a broken file or a second command."""

from __future__ import annotations

import json
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from vllm_mxext.errors import ConfigError
from vllm_mxext.registry.book import Book
from vllm_mxext.registry.errors import BookError, RegistryError, UnknownServerError
from vllm_mxext.registry.files import write_json
from vllm_mxext.registry.folders import Folders
from vllm_mxext.registry.record import read_record


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    return Folders(tmp_path / "config", tmp_path / "state")


def test_a_record_reads_what_it_has_written() -> None:
    settings = {
        "endpoint_url": "self-hosted", "backend": "vllm", "model_path": "gpt2", "tensor_parallel": "2",
        "max_model_len": "4k", "gpu_memory_utilization": "0.7", "dtype": "half", "host": "0.0.0.0", "port": "9000",
        "api_key_env": "MY_KEY", "env": {"OMP_NUM_THREADS": "2"}, "extra_args": ["--seed", "1"],
    }  # fmt: skip
    record = read_record("one", settings)
    assert (record.tensor_parallel, record.max_model_len, record.gpu_memory_utilization) == (2, 4000, 0.7)
    assert read_record("one", json.loads(json.dumps(record.as_mapping()))) == record
    assert record.url() == "http://127.0.0.1:9000"
    assert read_record("one", {"port": 1, "extra_args": ["--ssl-certfile", "c"]}).url() == "https://127.0.0.1:1"


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"backend": "vlm"}, "--backend must be one of native, vllm"),
        ({"backend": "vllm"}, "which model is vllm to serve?"),
        ({"port": "70000"}, "--port must be a whole number from 1 to 65535"),
        ({"gpu_memory_utilization": "1.5"}, "greater than 0 and at most 1"),
        ({"tensor-paralel": 2}, "did you mean tensor_parallel?"),
        ({"endpoint_url": "localhost:8000"}, "must be 'self-hosted' or an address"),
        ({"endpoint_url": "http://h:8000", "port": 1}, "--port is for servers that this machine starts"),
        ({"env": {"no-name": "1"}}, "--env must be NAME=VALUE"),
        ({"env": {"A": "\0"}}, "--env must be NAME=VALUE"),
        ({"extra_args": ["\0"]}, "--extra-args must be a list of texts"),
        ({"model_path": "~nobody-of-that-name/m"}, "home folder of an unknown user"),
        ({"endpoint_url": "http://h:8000\n"}, "one line without control characters"),
    ],
)
def test_a_wrong_setting_is_refused_with_a_sentence(settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_record("one", settings)
    assert sentence in str(caught.value)


@pytest.mark.parametrize("name", ["", "../one", "-x", "a b", "a" * 65, ".."])
def test_a_name_that_could_be_a_path_or_a_flag_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be the name"):
        read_record(name, {})


@pytest.mark.parametrize(
    "settings",
    [
        {"endpoint_url": "https://me:S3CRET@host"},
        {"endpoint_url": "https://host/v1?key=S3CRET"},
        {"api_key_env": "sk-S3CRET"},
        {"env": {"HF_TOKEN": "S3CRET"}},
        {"env": {"MY_API_KEY": "S3CRET"}},
        {"extra_args": ["--api-key", "S3CRET"]},
        {"extra_args": ["--api-key=S3CRET"]},
        {"extra_args": ["--ssl-keyfile-password", "S3CRET"]},
        {"endpoint_url": "https://me:S3CRET@host:99999"},
        {"endpoint_url": "me:S3CRET@host"},
        {"model_path": "https://me:S3CRET@host/model"},
        {"env": {"HTTPS_PROXY": "http://me:S3CRET@proxy:3128"}},
    ],
)
@pytest.mark.promise("REGISTRY-3")
def test_a_secret_is_neither_kept_nor_repeated(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError) as caught:
        read_record("one", settings)
    assert "S3CRET" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("{ broken", "is not valid JSON"),
        ("[]", "must hold 'schema_version'"),
        ('{"schema_version": 1, "servers": {"a": 3}}', "must hold 'schema_version'"),
        ('{"schema_version": 1, "servers": {"a": {"port": -1}}}', "has a wrong entry"),
        ('{"schema_version": 99, "servers": {}}', "written by a newer version"),
        ("\udcff", "not UTF-8"),
        ("[" * 100_000, "is not valid JSON"),
    ],
)
@pytest.mark.promise("REGISTRY-1")
def test_a_broken_file_is_named_and_never_overwritten(folders: Folders, content: str, sentence: str) -> None:
    folders.config.mkdir()
    data = content.encode("utf-8", errors="surrogateescape")
    folders.book.write_bytes(data)
    book = Book(folders)
    with pytest.raises(BookError) as caught, book.change() as records:
        records["b"] = read_record("b", {})
    assert sentence in str(caught.value)
    assert str(folders.book) in str(caught.value)
    assert folders.book.read_bytes() == data


def test_an_error_while_it_changes_leaves_the_file_as_it_was(folders: Folders) -> None:
    book = Book(folders)
    with book.change() as records:
        records["a"] = read_record("a", {})
    before = folders.book.read_bytes()
    with pytest.raises(ConfigError), book.change() as records:
        records["b"] = read_record("b", {"port": "none"})
    assert folders.book.read_bytes() == before
    assert [path.name for path in folders.config.iterdir()] == ["servers.json"]
    assert stat.S_IMODE(folders.book.stat().st_mode) == 0o600


@pytest.mark.promise("REGISTRY-1")
def test_many_who_change_it_at_once_lose_nothing(folders: Folders) -> None:
    def add(number: int) -> None:
        with Book(folders).change() as records:
            records[f"s{number}"] = read_record(f"s{number}", {})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(add, range(24)))
    assert len(Book(folders).read()) == 24


def test_a_folder_that_is_called_like_a_model_changes_nothing(
    folders: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Book(folders).change() as records:
        records["a"] = read_record("a", {"model_path": "gpt2"})
        records["b"] = read_record("b", {"model_path": "m" * 300})
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert [one.model_path for one in Book(folders).read().values()] == ["gpt2", "m" * 300]


def test_what_is_no_file_is_not_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(RegistryError, match="is not a file"):
        write_json(tmp_path / "pipe", {})
    assert stat.S_ISFIFO((tmp_path / "pipe").stat().st_mode)


def test_a_linked_file_stays_a_link(folders: Folders, tmp_path: Path) -> None:
    folders.config.mkdir()
    folders.book.symlink_to(tmp_path / "dotfiles.json")
    with Book(folders).change() as records:
        records["a"] = read_record("a", {})
    assert folders.book.is_symlink()
    assert "a" in Book(folders).read()


def test_an_unknown_name_brings_the_nearest_one(folders: Folders) -> None:
    with Book(folders).change() as records:
        records["llama"] = read_record("llama", {})
    with pytest.raises(UnknownServerError, match="did you mean llama"):
        Book(folders).get("lama")
