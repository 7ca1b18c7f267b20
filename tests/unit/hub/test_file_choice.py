"""Which files of a source are downloaded: what the format needs, what patterns say, and never anything unsafe."""

from __future__ import annotations

import pytest

from vllm_mxext.errors import ChecksumError, DownloadError, HubCause, UnsafeFileError
from vllm_mxext.hub.file_choice import choose_files
from vllm_mxext.hub.manifest.model import Artifact, FileEntry
from vllm_mxext.hub.sources.interface import Listing, RemoteFile

CHECKPOINT = (
    "config.json", "generation_config.json", "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors",
    "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "README.md",
    "LICENSE",
)  # fmt: skip


def listing(*paths: str, sha256: str | None = None) -> Listing:
    return Listing("r1", tuple(RemoteFile(path, 10, sha256, f"https://x/{path}") for path in paths))


def chosen(artifact: Artifact, *paths: str, pickle: bool = False, code: bool = False) -> list[str]:
    files = choose_files("hf://a/b", artifact, listing(*paths), allows_pickle=pickle, allows_code=code)
    return [file.path for file in files]


@pytest.mark.promise("HUB-PULL-1")
def test_a_format_brings_its_weights_and_texts_and_nothing_else() -> None:
    others = ("pytorch_model.bin", "original/consolidated.00.pth", "modeling_x.py", "onnx/model.onnx", "image.png")
    assert chosen(Artifact("model"), *others, *CHECKPOINT) == sorted(CHECKPOINT)


@pytest.mark.promise("HUB-SAFE-2")
def test_pickles_and_programs_that_look_like_a_tokenizer_are_left_out() -> None:
    assert chosen(Artifact("model"), "tokenizer_x.py", "tokenizer.pkl", *CHECKPOINT) == sorted(CHECKPOINT)


def test_a_second_copy_of_the_weights_is_left_out_unless_it_is_the_only_one() -> None:
    assert "consolidated.safetensors" not in chosen(Artifact("model"), "consolidated.safetensors", *CHECKPOINT)
    assert chosen(Artifact("model"), "consolidated.safetensors") == ["consolidated.safetensors"]


def test_patterns_choose_within_folders_too() -> None:
    artifact = Artifact("q4", "gguf", include=("*q4_k_m*.gguf",), exclude=("*draft*",))
    paths = ("a/m-q4_k_m-00001-of-00002.gguf", "a/m-q4_k_m-00002-of-00002.gguf", "m-q8_0.gguf", "draft-q4_k_m.gguf")
    assert chosen(artifact, *paths) == list(paths[:2])


@pytest.mark.promise("HUB-SAFE-1")
@pytest.mark.parametrize("path", ["../model.safetensors", "/model.safetensors", "a/../../model.safetensors"])
def test_a_path_that_leaves_the_folder_is_refused(path: str) -> None:
    with pytest.raises(UnsafeFileError):
        chosen(Artifact("model", include=("*.safetensors",)), path)


@pytest.mark.promise("HUB-SAFE-2")
def test_pickles_and_code_that_an_artifact_names_need_to_be_allowed() -> None:
    pickles = Artifact("old", "pytorch")
    with pytest.raises(UnsafeFileError, match="--manifest-allow-unsafe"):
        chosen(pickles, "pytorch_model.bin", "config.json")
    assert "pytorch_model.bin" in chosen(pickles, "pytorch_model.bin", "config.json", pickle=True)
    code = Artifact("model", include=("*.safetensors", "*.py"))
    with pytest.raises(UnsafeFileError):
        chosen(code, "model.safetensors", "modeling.py")
    assert "modeling.py" in chosen(code, "model.safetensors", "modeling.py", code=True)


def test_pinned_files_are_those_and_with_these_bytes() -> None:
    pinned = Artifact("model", files=(FileEntry("model.safetensors", 10, "a" * 64),))
    (file,) = choose_files(
        "u", pinned, listing(*CHECKPOINT, "model.safetensors"), allows_pickle=False, allows_code=False
    )
    assert (file.path, file.size, file.sha256, file.locator) == (
        "model.safetensors", 10, "a" * 64, "https://x/model.safetensors",
    )  # fmt: skip
    other = listing("model.safetensors", sha256="b" * 64)
    with pytest.raises(ChecksumError, match="the manifest says a"):
        choose_files("u", pinned, other, allows_pickle=False, allows_code=False)
    with pytest.raises(DownloadError, match="which the manifest lists") as caught:
        chosen(pinned, "config.json")
    assert caught.value.cause is HubCause.NOT_FOUND


def test_a_source_without_such_weights_says_what_it_has() -> None:
    with pytest.raises(DownloadError, match=r"no files of the safetensors artifact 'model'; it has \.gguf, \.json"):
        chosen(Artifact("model"), "m.gguf", "config.json")


@pytest.mark.promise("HUB-SAFE-1")
def test_a_list_that_no_model_has_is_refused_before_anything_is_downloaded() -> None:
    with pytest.raises(UnsafeFileError, match="more than 20000 files"):
        chosen(Artifact("model"), *CHECKPOINT, *(f"{number}.json" for number in range(20_001)))
    with pytest.raises(UnsafeFileError, match="cannot be in one folder"):
        chosen(Artifact("model"), *CHECKPOINT, "config.json")
    for size in (-5, 2**80):
        files = Listing("r1", (RemoteFile("model.safetensors", size, None, ""),))
        with pytest.raises(DownloadError, match=r"model\.safetensors.*bytes"):
            choose_files("hf://a/b", Artifact("model"), files, allows_pickle=False, allows_code=False)
