"""A model that no manifest has is described from its small files; its weights are not read."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from vllm_mxext import builtin
from vllm_mxext.errors import ChecksumError, DownloadError, TransferError
from vllm_mxext.hub.manifest.model import FileEntry, ModelEntry
from vllm_mxext.hub.model_free import cached_entry, entry_from_folder, entry_from_source, keep_entry
from vllm_mxext.hub.sources.interface import Listing, RemoteFile

pytestmark = pytest.mark.promise("HUB-MANIFEST-5")

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 128,
    "num_hidden_layers": 1, "num_attention_heads": 4, "vocab_size": 100, "torch_dtype": "bfloat16",
}  # fmt: skip
DIGEST = "cd" * 32
SIZES = {"BF16": 2, "F16": 2, "F32": 4, "I32": 4, "U32": 4, "U8": 1, "F8_E4M3": 1}


def safetensors(tensors: Mapping[str, tuple[str, list[int]]], padding: int = 0) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"x": "y" * padding}} if padding else {}
    end = 0
    for name, (dtype, shape) in tensors.items():
        begin, size = end, SIZES[dtype]
        for number in shape:
            size *= number
        end = begin + size
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + bytes(end)


class FakeRange:
    def __init__(self, content: bytes, start: int, end: int | None, fault: Exception | None) -> None:
        self.start, self.total_size, self.validator = start, len(content), None
        self._bytes, self._fault = content[start:end], fault

    def chunks(self) -> Iterator[bytes]:
        if self._fault is not None:
            raise self._fault
        for begin in range(0, len(self._bytes), 1000):
            yield self._bytes[begin : begin + 1000]

    def __enter__(self) -> FakeRange:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class FakeSource:
    """Files in memory that count the bytes read of each."""

    uri = "hf://acme/model"

    def __init__(self, files: Mapping[str, bytes | dict[str, Any]]) -> None:
        self.files = {
            path: content if isinstance(content, bytes) else json.dumps(content).encode()
            for path, content in files.items()
        }
        self.bytes_read: dict[str, int] = {}
        self.ignores_ranges = False
        self.faults: list[Exception] = []

    def list_files(self) -> Listing:
        return Listing(
            "c0ffee",
            tuple(RemoteFile(path, len(content), DIGEST, path) for path, content in sorted(self.files.items())),
        )

    def open_range(self, file: RemoteFile, start: int, end: int | None, validator: str | None) -> FakeRange:
        if self.ignores_ranges:
            start, end = 0, None
        content = self.files[file.path]
        stop = len(content) if end is None else min(end, len(content))
        self.bytes_read[file.path] = self.bytes_read.get(file.path, 0) + stop - start
        return FakeRange(content, start, end, self.faults.pop() if self.faults else None)

    def close(self) -> None:
        return None


def entry_of(files: Mapping[str, bytes | dict[str, Any]]) -> ModelEntry:
    return entry_from_source("hf://acme/model", FakeSource(files))


WEIGHTS = safetensors({"model.embed.weight": ("BF16", [100, 64]), "norm.weight": ("F32", [64])})


def test_a_plain_checkpoint_gets_profiles_of_every_engine_that_can_run_it() -> None:
    card = b"---\nlicense: apache-2.0\ntags: [a]\n---\n# Model\n"
    entry = entry_of({"config.json": LLAMA, "model.safetensors": WEIGHTS, "README.md": card, "tokenizer.json": {}})
    assert (entry.name, entry.family, entry.revision, entry.license) == ("acme/model", "llama", "c0ffee", "apache-2.0")
    assert entry.num_parameters == 100 * 64 + 64
    assert entry.config == LLAMA
    assert entry.sources == ("hf://acme/model",)
    (artifact,) = entry.artifacts
    assert FileEntry("model.safetensors", len(WEIGHTS), DIGEST) in artifact.files
    assert {file.path for file in artifact.files} == {"config.json", "model.safetensors", "README.md", "tokenizer.json"}
    by_name = {profile.name: profile for profile in entry.profiles}
    assert list(by_name) == [
        "native-cpu-bf16", "native-cpu-int8", "native-cuda-bf16", "native-cuda-fp16", "vllm-bf16", "vllm-amd-bf16",
        "vllm-metax-bf16", "tensorrt_llm-bf16",
    ]  # fmt: skip
    assert by_name["native-cpu-int8"].is_fallback
    assert by_name["native-cpu-int8"].engine_args == {"device": "cpu", "quantization": "int8"}
    assert entry.description == ""


def test_no_weights_are_read() -> None:
    large = safetensors({"w": ("BF16", [1000, 1000])})
    source = FakeSource({"config.json": LLAMA, "model.safetensors": large})
    entry = entry_from_source("hf://acme/model", source)
    assert entry.num_parameters == 1_000_000
    assert source.bytes_read["model.safetensors"] <= 128 * 1024 < len(large)


def test_a_long_header_is_read_in_two_requests() -> None:
    long_header = safetensors({"w": ("F16", [1000, 1000])}, padding=300_000)
    source = FakeSource({"config.json": {**LLAMA, "torch_dtype": None}, "model.safetensors": long_header})
    entry = entry_from_source("hf://acme/model", source)
    assert entry.num_parameters == 1_000_000
    assert entry.config["dtype"] == "float16"
    assert 300_000 < source.bytes_read["model.safetensors"] < 310_000


def test_a_source_that_ignores_ranges_is_understood() -> None:
    source = FakeSource({"config.json": LLAMA, "model.safetensors": safetensors({"w": ("BF16", [9])}, 300_000)})
    source.ignores_ranges = True
    assert entry_from_source("hf://acme/model", source).num_parameters == 9


@pytest.mark.usefixtures("impatient")
def test_a_broken_connection_is_tried_again() -> None:
    source = FakeSource({"config.json": LLAMA, "model.safetensors": WEIGHTS})
    source.faults = [TransferError("gone")]
    assert entry_from_source("hf://acme/model", source).num_parameters > 0


def test_shards_are_those_of_the_index() -> None:
    shards = {
        "model-1.safetensors": safetensors({"a": ("BF16", [10])}),
        "model-2.safetensors": safetensors({"b": ("BF16", [20])}),
    }
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    files = {"config.json": LLAMA, "model.safetensors.index.json": index, "consolidated.safetensors": WEIGHTS, **shards}
    entry = entry_of(files)
    assert entry.num_parameters == 30
    assert "consolidated.safetensors" not in {file.path for file in entry.artifacts[0].files}
    del files["model-2.safetensors"]
    with pytest.raises(DownloadError, match=r"no model-2\.safetensors, which model\.safetensors\.index\.json names"):
        entry_of(files)


def test_an_architecture_that_the_native_engine_does_not_run_is_said() -> None:
    entry = entry_of({"config.json": {**LLAMA, "architectures": ["OtherLM"]}, "model.safetensors": WEIGHTS})
    assert "native" not in {profile.tags.llm_engine for profile in entry.profiles}
    assert entry.description == "The native engine does not run its architecture, OtherLM."


@pytest.mark.parametrize(
    ("quantization", "tensors", "precision", "num_parameters"),
    [
        ({"quant_method": "gptq", "bits": 4}, {"q.qweight": ("I32", [8, 10]), "q.scales": ("F16", [10])}, "gptq", 640),
        ({"quant_method": "gptq", "bits": 8}, {"q.qweight": ("I32", [8, 10])}, "gptq", 320),
        ({"quant_method": "awq"}, {"q.qweight": ("I32", [8, 10]), "q.qzeros": ("I32", [1])}, "awq", 640),
        ({"quant_method": "fp8"}, {"q.weight": ("F8_E4M3", [8]), "q.weight_scale_inv": ("F32", [1])}, "fp8", 8),
        ({"quant_method": "mxfp4"}, {"e.up_blocks": ("U8", [8]), "e.up_scales": ("U8", [1])}, "mxfp4", 16),
        (
            {"quant_method": "compressed-tensors", "config_groups": {"g": {"weights": {"num_bits": 4, "type": "int"}}}},
            {"q.weight_packed": ("I32", [10]), "q.weight_scale": ("BF16", [1])},
            "int4",
            80,
        ),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"q.weight": ("U8", [10])}, "int4", 10),
        ({"quant_method": 7}, {"q.weight": ("U8", [10])}, "7", 10),
    ],
)
def test_quantised_weights_are_called_what_the_config_says(
    quantization: dict[str, Any], tensors: dict[str, Any], precision: str, num_parameters: int
) -> None:
    config = {**LLAMA, "quantization_config": quantization, "architectures": ["OtherLM"]}
    entry = entry_of({"config.json": config, "model.safetensors": safetensors(tensors)})
    assert {profile.tags.precision for profile in entry.profiles} == {precision}
    assert entry.num_parameters == num_parameters


def test_gguf_files_are_artifacts_by_quantisation() -> None:
    entry = entry_of({
        "model-Q4_K_M-00001-of-00002.gguf": b"GGUF", "model-Q4_K_M-00002-of-00002.gguf": b"GGUF",
        "model-q8_0.gguf": b"GGUF", "mmproj-model-f16.gguf": b"GGUF",
    })  # fmt: skip
    assert {artifact.name: len(artifact.files) for artifact in entry.artifacts} == {"gguf-q4_k_m": 2, "gguf-q8_0": 1}
    assert {profile.tags.llm_engine for profile in entry.profiles} == {"llama.cpp"}
    assert {profile.tags.precision for profile in entry.profiles} == {"q4_k_m", "q8_0"}


def test_mlx_weights_run_on_apple() -> None:
    config = {**LLAMA, "quantization": {"bits": 4, "group_size": 64}}
    entry = entry_of({"config.json": config, "model.safetensors": safetensors({"w.weight": ("U32", [10])})})
    assert [(profile.name, profile.device.vendor) for profile in entry.profiles] == [("mlx-int4", "apple")]
    assert entry.num_parameters == 80


def test_pickles_are_an_artifact_only_where_there_is_nothing_else() -> None:
    entry = entry_of({"config.json": LLAMA, "pytorch_model.bin": b"x"})
    assert [artifact.format for artifact in entry.artifacts] == ["pytorch"]
    assert {profile.tags.llm_engine for profile in entry.profiles} == {"vllm"}
    entry = entry_of({"config.json": LLAMA, "pytorch_model.bin": b"x", "model.safetensors": WEIGHTS})
    assert [artifact.format for artifact in entry.artifacts] == ["safetensors"]


@pytest.mark.parametrize(
    ("weights", "complaint"),
    [
        (b"", "is cut off: it has 0 bytes."),
        (b"\x01\x02\x03", "is cut off: it has 3 bytes."),
        (struct.pack("<Q", 2**60) + b"{}", "its header would be 1152921504606846976 bytes long"),
        (struct.pack("<Q", 2) + b"[]", "has a broken header: it has not the form of one."),
        (struct.pack("<Q", 2) + b"{x", "has a broken header: it has not the form of one."),
        (struct.pack("<Q", 8) + b'{"a": 1}', "has a broken header: it has not the form of one."),
        (struct.pack("<Q", 5000) + b"[" * 5000, "has a broken header: it has not the form of one."),
        (WEIGHTS[:-10], "its header speaks of "),
        (WEIGHTS + b"x", "its header speaks of "),
        (WEIGHTS.replace(b'"F32"', b'"F99"'), "the type F99 of 'norm.weight' is not known"),
        (WEIGHTS.replace(b"[100, 64]", b"[100, 65]"), "is not where it should be or has another size"),
        (WEIGHTS.replace(b"[100, 64]", b"[100,-64]"), "sizes and offsets must be whole numbers"),
    ],
)
def test_a_broken_header_is_said_in_one_sentence(weights: bytes, complaint: str) -> None:
    with pytest.raises(ChecksumError) as caught:
        entry_of({"config.json": LLAMA, "model.safetensors": weights})
    assert str(caught.value).startswith("model.safetensors of hf://acme/model ")
    assert complaint in str(caught.value)


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"README.md": b"x"}, "has no config.json, so this is no model in Hugging Face's layout"),
        ({"config.json": LLAMA}, "has no weights"),
        ({"config.json": b"[]", "model.safetensors": WEIGHTS}, "must hold a JSON object"),
        ({"config.json": b"{", "model.safetensors": WEIGHTS}, "config.json of hf://acme/model is not valid JSON"),
        ({"config.json": b"[" * 100_000, "model.safetensors": WEIGHTS}, "is not valid JSON"),
        (
            {"config.json": LLAMA, "model.safetensors.index.json": {"weight_map": 3}, "model.safetensors": WEIGHTS},
            "has no weight_map",
        ),
    ],
)
def test_what_is_no_model_is_refused(files: dict[str, Any], complaint: str) -> None:
    with pytest.raises((ChecksumError, DownloadError), match=complaint):
        entry_of(files)


@pytest.mark.parametrize(
    "odd",
    [
        {"architectures": "LlamaForCausalLM"}, {"architectures": [3]}, {"architectures": []}, {"model_type": [1]},
        {"hidden_size": "x"}, {"num_attention_heads": 0}, {"torch_dtype": 5}, {"quantization_config": "x"},
        {"quantization_config": {"quant_method": "compressed-tensors", "config_groups": []}}, {"quantization": []},
        {"text_config": 1}, {"rope_scaling": [1]}, {"layer_types": 4}, {"eos_token_id": {}},
    ],
)  # fmt: skip
def test_odd_values_of_a_config_do_not_fail_the_description(odd: dict[str, Any], tmp_path: Path) -> None:
    entry = entry_of({"config.json": {**LLAMA, **odd}, "model.safetensors": WEIGHTS})
    assert entry.profiles
    keep_entry(tmp_path, "hf://acme/model", None, entry)
    assert cached_entry(tmp_path, "hf://acme/model", None) == entry


@pytest.mark.parametrize(
    ("card", "expected"),
    [
        (b"---\nlicense: other\nlicense_name: mine\nlicense_link: https://x.org/l\n---\n", ("mine", "https://x.org/l")),
        (b"---\nlicense: [mit]\n---\n", ("", "")),
        (b"---\nlicense: !!python/name:os.system x\n---\n", ("", "")),
        (b"---\nlicense: mit\n", ("", "")),
        (b"# no front matter", ("", "")),
    ],
)
def test_the_licence_comes_from_the_model_card(card: bytes, expected: tuple[str, str]) -> None:
    entry = entry_of({"config.json": LLAMA, "model.safetensors": WEIGHTS, "README.md": card})
    assert (entry.license, entry.license_url) == expected


def test_the_native_engine_s_own_model_is_described_from_its_folder() -> None:
    entry = entry_from_folder(builtin.model_path())
    assert (entry.name, entry.num_parameters) == ("mx-tiny", 3_476_224)
    assert entry.sources == (builtin.model_path().as_uri(),)
    assert entry.profiles[0].name == "native-cpu-bf16"


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(DownloadError, match="does not exist"):
        entry_from_folder(tmp_path / "none")


def test_descriptions_are_kept_by_address_and_revision(tmp_path: Path) -> None:
    entry = entry_of({"config.json": LLAMA, "model.safetensors": WEIGHTS})
    keep_entry(tmp_path, "hf://acme/model", None, entry)
    assert cached_entry(tmp_path, "hf://acme/model", None) == entry
    assert cached_entry(tmp_path, "hf://acme/model", "v2") is None
    assert cached_entry(tmp_path, "s3://acme/model", None) is None
    (path,) = (tmp_path / "manifests").iterdir()
    path.write_text("broken: [")
    assert cached_entry(tmp_path, "hf://acme/model", None) is None


def test_a_store_that_cannot_be_written_is_no_hindrance(tmp_path: Path) -> None:
    (tmp_path / "manifests").write_text("in the way")
    keep_entry(tmp_path, "hf://acme/model", None, entry_of({"config.json": LLAMA, "model.safetensors": WEIGHTS}))
    assert cached_entry(tmp_path, "hf://acme/model", None) is None
