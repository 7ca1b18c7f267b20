"""Manifests of NVIDIA NIM and plain lists become ours, and what is left out is said.

The forms are those of NVIDIA/k8s-nim-operator's parser (internal/nimparser) and its test data.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.unit.hub.manifest_texts import parse_manifest
from vllm_mxext.errors import ManifestError
from vllm_mxext.hub.manifest.model import DeviceNeeds, FileEntry, Tags

pytestmark = pytest.mark.promise("HUB-MANIFEST-3")

ID_1, ID_2 = "03fdb4d1" + "0" * 56, "0f3de1af" + "1" * 56
NIM_MAP = f"""
{ID_1}:
  model: meta/llama3-70b-instruct
  release: '1.0.0'
  tags:
    feat_lora: 'true'
    feat_lora_max_rank: '32'
    gpu: L40S
    gpu_device: 26b5:10de
    llm_engine: tensorrt_llm
    pp: '1'
    precision: fp16
    profile: throughput
    tp: '8'
  container_url: nvcr.io/nim/meta/llama3-70b-instruct:1.0.0
  workspace: !workspace
    components:
    - dst: trtllm_engine
      src:
        repo_id: ngc://nim/meta/llama3-70b-instruct:0.10.1
        files:
          - !name 'LICENSE.txt'
          - !name 'rank0.engine'
{ID_2}:
  model: meta/llama3-70b-instruct
  tags:
    llm_engine: vllm
    precision: fp16
    tp: '8'
  workspace: !workspace
    components:
    - dst: ''
      src:
        repo_id: ngc://nim/meta/llama3-70b-instruct:hf
        files:
          - !name 'config.json'
"""
NIM_LIST = f"""
schema_version: 2.0.0
profile_selection_criteria: default
profiles:
  - id: {ID_1}
    tags: {{llm_engine: vllm, precision: bf16, tp: '4', pp: '1', feat_lora: 'false'}}
    workspace:
      files:
        LICENSE:
          uri: ngc://nim/meta/llama-3.3-70b-instruct:hf-5825c91?file=LICENSE
        config.json:
          uri: ngc://nim/meta/llama-3.3-70b-instruct:hf-5825c91?file=config.json
          size: 900
  - id: {ID_2}
    tags: {{llm_engine: tensorrt_llm, precision: bf16, tp: '8', pp: '1', feat_lora: 'false', trtllm_buildable: 'true'}}
    workspace:
      files:
        LICENSE:
          uri: ngc://nim/meta/llama-3.3-70b-instruct:hf-5825c91?file=LICENSE
        config.json:
          uri: ngc://nim/meta/llama-3.3-70b-instruct:hf-5825c91?file=config.json
          size: 900
"""
NIM_WRAPPED = f"""
model_profile: MolMIM
manifest:
  - id: {ID_1}
    tags: {{backend: tensorrt, precision: fp16, gpu: A100, product_name_regex: ^NVIDIA-A100.*}}
  - {ID_2}:
      tags: {{llm_engine: vllm, precision: fp16}}
"""


def test_nim_map_of_profiles() -> None:
    manifest = parse_manifest(NIM_MAP, origin="file x")
    assert manifest.origin == "file x, imported from NVIDIA NIM's map of profiles"
    (entry,) = manifest.models
    assert entry.name == "meta/llama3-70b-instruct"
    built, generic = entry.profiles
    assert built.name == "tensorrt_llm-l40s-fp16-tp8-pp1-throughput-lora"
    assert built.aliases == (ID_1,)
    assert built.tags == Tags("tensorrt_llm", "fp16", 8, 1, "throughput", feat_lora=True, gpu="L40S")
    assert built.device == DeviceNeeds("gpu", "nvidia", 8, ids=("10de:26b5",))
    assert built.lora == {"max_lora_rank": 32}
    assert generic.name == "vllm-fp16-tp8-pp1"
    engine, weights = entry.artifacts
    assert engine.format == "tensorrt_llm"
    assert [file.path for file in engine.files] == ["trtllm_engine/LICENSE.txt", "trtllm_engine/rank0.engine"]
    assert (weights.format, weights.sources) == ("safetensors", ("ngc://nim/meta/llama3-70b-instruct:hf",))
    (note,) = manifest.notes
    assert note.startswith("Line 2: the files of the profile '03fdb4d1")
    assert note.endswith("it can be planned with, but not downloaded.")


def test_nim_list_of_profiles_names_the_model_by_its_files() -> None:
    manifest = parse_manifest(NIM_LIST)
    (entry,) = manifest.models
    assert entry.name == "meta/llama-3.3-70b-instruct"
    assert [profile.name for profile in entry.profiles] == [
        "vllm-bf16-tp4-pp1", "tensorrt_llm-trtllm_buildable-bf16-tp8-pp1"
    ]  # fmt: skip
    (artifact,) = entry.artifacts
    assert artifact.files == (FileEntry("LICENSE"), FileEntry("config.json", 900))
    assert artifact.sources == ("ngc://nim/meta/llama-3.3-70b-instruct:hf-5825c91",)
    assert {profile.artifact for profile in entry.profiles} == {artifact.name}
    assert manifest.notes == ()


def test_nim_wrapped_list_says_what_it_leaves_out() -> None:
    manifest = parse_manifest(NIM_WRAPPED)
    (entry,) = manifest.models
    assert (entry.name, [profile.aliases for profile in entry.profiles]) == ("MolMIM", [(ID_2,)])
    assert any("needs the engine 'tensorrt', which is not known; left out." in note for note in manifest.notes)
    assert "The tag 'product_name_regex' of 1 entries is not imported." in manifest.notes


def test_equal_profiles_of_nim_become_aliases_of_one() -> None:
    manifest = parse_manifest(f"{ID_1}: &p {{model: a/b, tags: {{llm_engine: vllm}}}}\n{ID_2}: *p\n")
    (profile,) = manifest.models[0].profiles
    assert profile.aliases == (ID_1, ID_2)
    assert "is the same as" in manifest.notes[0]


def test_unsafe_paths_of_nim_are_refused_in_their_line() -> None:
    with pytest.raises(ManifestError, match=r"\Am\.yaml:23: .*must be a path inside the model.*\Z"):
        parse_manifest(NIM_MAP.replace("'rank0.engine'", "'../../x'"), "m.yaml")


def test_a_number_that_is_none_is_said() -> None:
    manifest = parse_manifest(f"{ID_1}: {{model: a, tags: {{llm_engine: vllm, tp: many, profile: best}}}}")
    assert manifest.models[0].profiles[0].tags.tp == 1
    assert manifest.notes == (
        "Line 1: the tag tp is no number.",
        "Line 1: the tag profile 'best' is not known; taken as balanced.",
    )


@pytest.mark.parametrize(
    "text",
    [
        "- {name: llama, path: ./x, precision: float16, engine: native, tp: '1', color: red}\n"
        "- {name: qwen, repo: Qwen/Qwen3-8B, engine: vllm, tensor_parallel_size: 2, max_model_len: 4096}\n",
        "version: 1\nmodels:\n  - {name: llama, path: ./x, dtype: half, color: red}\n"
        "  - {name: qwen, uri: 'hf://Qwen/Qwen3-8B', backend: vllm, tp: 2, max_model_len: 4096}\n",
        "llama: {path: ./x, dtype: fp16, color: red}\n"
        "qwen: {uri: 'hf://Qwen/Qwen3-8B', backend: vllm, tp: 2, max_model_len: 4096}\n",
    ],
)
def test_plain_lists_of_models(text: str) -> None:
    manifest = parse_manifest(text, folder=Path("/srv"))
    llama, qwen = manifest.models
    assert (llama.name, llama.sources) == ("llama", ("file:///srv/x",))
    assert (llama.profiles[0].name, llama.profiles[0].tags) == ("native-cpu-fp16", Tags("native", "fp16"))
    assert (qwen.name, qwen.sources) == ("qwen", ("hf://Qwen/Qwen3-8B",))
    assert qwen.profiles[0].tags == Tags("vllm", "bf16", 2)
    assert qwen.profiles[0].device == DeviceNeeds("gpu", None, 2)
    assert qwen.profiles[0].engine_args == {"max-model-len": 4096}
    assert manifest.notes == ("The key 'color' of 1 entries is not imported.",)
    assert manifest.origin.endswith("imported from a plain list of models")


def test_names_with_nothing_but_places_are_a_list_of_models() -> None:
    manifest = parse_manifest("llama: /models/llama\nqwen: hf://Qwen/Qwen3-8B\n")
    assert [entry.sources for entry in manifest.models] == [("file:///models/llama",), ("hf://Qwen/Qwen3-8B",)]
