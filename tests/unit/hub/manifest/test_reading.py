"""A manifest is read whole, or every complaint has its line and says what to do."""

from __future__ import annotations

from pathlib import Path

import jsonschema_rs
import pytest

from tests.unit.hub.manifest_texts import parse_manifest
from vllm_mxext.errors import ManifestError
from vllm_mxext.hub.manifest.document import parse
from vllm_mxext.hub.manifest.model import AdapterEntry, Artifact, DeviceNeeds, FileEntry, HostNeeds, Security, Tags
from vllm_mxext.hub.manifest.reading import read_manifest
from vllm_mxext.hub.manifest.schema import published_schema

pytestmark = pytest.mark.promise("HUB-MANIFEST-1")

ROOT = Path(__file__).parents[4]
DIGEST = "ab" * 32
WHOLE = f"""
schema: mx.hub/v1
model:
  name: org/model
  aliases: [model]
  family: llama
  license: MIT
  license_url: https://example.org/license
  revision: "1234567"
  description: A model.
  parameters: 8030261248
  config: {{hidden_size: 64, layer_types: [a, b]}}
sources: [hf://org/model, ./weights, "s3://bucket/model"]
artifacts:
  - name: weights
    format: safetensors
    include: ["*.safetensors"]
    exclude: ["original/*"]
    files:
      - {{path: model.safetensors, size: 1GiB, sha256: {DIGEST}}}
      - {{path: sub/config.json}}
    sources: [file:///models/x]
    revision: v1
profiles:
  - name: fast
    aliases: [quick]
    tags: {{llm_engine: vllm, precision: fp8, tp: 2, pp: 2, profile: latency, feat_lora: true, gpu: H100}}
    artifact: weights
    requires:
      device: {{kind: gpu, vendor: nvidia, count: 8, min_memory: 80GB, arch: [">=sm_90"], ids: ["10de:2330"]}}
      host: {{memory: 64GiB, disk: 100, isa: [avx2]}}
    engine_args: {{anything: [1, {{x: y}}]}}
    fallback: true
    lora: {{max_loras: 2, max_lora_rank: 8, max_cpu_loras: 4}}
  - name: plain
    engine_args: {{max_model_len: 4K, enable-prefix-caching: false}}
adapters:
  - {{name: math, uri: adapters/math, description: Sums., auto_load: false}}
  - {{name: code, uri: "hf://org/code"}}
selection: {{goal: memory}}
security: {{signature: require, identity: me@example.org, identity_provider: https://id.example.org, public_key: k.pem,
            trust_remote_code: true, allow_pickle: true}}
"""


def complaints(text: str) -> list[str]:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(text, "m.yaml")
    return str(caught.value).splitlines()


def test_every_key_arrives() -> None:
    manifest = parse_manifest(WHOLE, folder=Path("/etc/mim"))
    (entry,) = manifest.models
    assert (entry.name, entry.aliases, entry.family, entry.license) == ("org/model", ("model",), "llama", "MIT")
    assert (entry.license_url, entry.revision, entry.description) == (
        "https://example.org/license", "1234567", "A model."
    )  # fmt: skip
    assert entry.num_parameters == 8030261248
    assert entry.config == {"hidden_size": 64, "layer_types": ["a", "b"]}
    assert entry.sources == ("hf://org/model", "file:///etc/mim/weights", "s3://bucket/model")
    files = (FileEntry("model.safetensors", 2**30, DIGEST), FileEntry("sub/config.json"))
    assert entry.artifacts == (
        Artifact("weights", "safetensors", ("*.safetensors",), ("original/*",), files, ("file:///models/x",), "v1"),
    )
    fast, plain = entry.profiles
    assert (fast.name, fast.aliases, fast.artifact, fast.is_fallback) == ("fast", ("quick",), "weights", True)
    assert fast.tags == Tags("vllm", "fp8", 2, 2, "latency", feat_lora=True, gpu="H100")
    assert fast.device == DeviceNeeds("gpu", "nvidia", 8, 80 * 10**9, (">=sm_90",), ("10de:2330",))
    assert fast.host == HostNeeds(64 * 2**30, 100, ("avx2",))
    assert fast.engine_args == {"anything": [1, {"x": "y"}]}
    assert fast.lora == {"max_loras": 2, "max_lora_rank": 8, "max_cpu_loras": 4}
    assert plain.engine_args == {"max_model_len": "4K", "enable-prefix-caching": False}
    assert plain.device == DeviceNeeds()
    assert entry.adapters == (
        AdapterEntry("math", "/etc/mim/adapters/math", "Sums.", is_loaded_at_start=False),
        AdapterEntry("code", "hf://org/code"),
    )
    assert entry.goal == "memory"
    assert entry.security == Security(
        "require", "me@example.org", "https://id.example.org", "k.pem", trust_remote_code=True, allow_pickle=True
    )
    assert manifest.notes == ()


def test_a_file_can_hold_several_models_and_anchors() -> None:
    manifest = parse_manifest(
        "schema: mx.hub/v1\nx-profiles: [&cpu {name: cpu}]\nmodels:\n"
        "  - {model: {name: a}, profiles: [*cpu]}\n  - {model: {name: b}, profiles: [*cpu]}\n"
    )
    assert [(entry.name, entry.profiles[0].name) for entry in manifest.models] == [("a", "cpu"), ("b", "cpu")]


def test_several_devices_are_counted_by_the_tags_unless_said() -> None:
    entry = parse_manifest(HEAD + "profiles: [{name: p, tags: {llm_engine: vllm, tp: 4, pp: 2}, requires: "
                           "{device: {kind: gpu}}}]").models[0]  # fmt: skip
    assert entry.profiles[0].device.count == 8


HEAD = "schema: mx.hub/v1\nmodel: {name: a}\n"
ONE = HEAD + "profiles:\n- name: p\n"


@pytest.mark.parametrize(
    ("text", "line", "complaint"),
    [
        ("schema: mx.hub/v2\nmodel: {name: a}", 1, "schema must be mx.hub/v1, got 'mx.hub/v2'."),
        ("shema: mx.hub/v1\nmodel: {name: a}", 1, "Unknown key 'shema'; did you mean schema?"),
        ("hello: world", 1, "This is no manifest of a known form; begin it with 'schema: mx.hub/v1'"),
        ("schema: mx.hub/v1\n", 1, "The file has no model, which it needs."),
        ("schema: mx.hub/v1\nmodel:\n  licence: MIT\n  name: a", 3, "'licence' in model; did you mean license?"),
        (HEAD + "zzz: 1", 3, "Unknown key 'zzz'; known are schema, model, sources, "),
        (HEAD + "profiles:\n- name: a\n  tags: {llm_engine: tensort_llm}", 5, "; did you mean tensorrt_llm?"),
        (HEAD + "profiles: [{name: default}]", 3, "and not 'default', got 'default'."),
        (HEAD + "profiles: [{name: a, tags: {tp: '2'}}]", 3, "profiles[0].tags.tp must be a whole number, got '2'."),
        (HEAD + "profiles: [{name: a, tags: {feat_lora: yes}}]", 3, "must be true or false, got 'yes'."),
        (HEAD + "profiles: 5", 3, "profiles must be a list, got 5."),
        ("schema: mx.hub/v1\nmodel: {name: a, revision: 12345}", 2, "must be text; put it in quotes, got 12345."),
        (HEAD + "sources: [org/name]", 3, "must be a URI such as hf://ORG/NAME"),
        (HEAD + "sources: ['https://me:secret@host/x']", 3, "A source has credentials in it"),
        (HEAD + "sources: ['https://[x']", 3, "not a valid URI"),
        (HEAD + "artifacts: [{name: a, files: [{path: ../x}]}]", 3, "must be a path inside the model"),
        (HEAD + "artifacts: [{name: a, files: [{path: /x}]}]", 3, "must be a path inside the model"),
        (HEAD + "artifacts: [{name: a, files: [{path: 'a\\b'}]}]", 3, "must be a path inside the model"),
        (HEAD + "artifacts: [{name: a, files: [{path: x, sha256: ABC}]}]", 3, "must be 64 hexadecimal digits"),
        (HEAD + "artifacts: [{name: a, files: [{path: x}, {path: X}]}]", 3, "The file 'X' is listed twice"),
        (HEAD + "artifacts: [{name: a, files: [{path: x, size: 1.5}]}]", 3, "must be a size such as 24GiB"),
        (HEAD + "artifacts: [{name: a, files: [{path: x, size: 1.5B}]}]", 3, "must be a size of at least 0 bytes"),
        (HEAD + "artifacts:\n- name: st\nprofiles:\n- name: p\n  artifact: sst", 7, "artifact 'sst'; did you mean st?"),
        (ONE + "- name: P", 5, "The name 'P' of a profile is taken already, by 'p'"),
        (ONE + "- name: q\n  aliases: [p]", 6, "The name 'p' of a profile is taken already"),
        (ONE + "- name: q\n  tags: {tp: 1}", 5, "'p' and 'q' differ in nothing but"),
        (ONE + "  engine_args: {max-num-seq: 3}", 5, "flag 'max-num-seq'; did you mean max-num-seqs?"),
        (ONE + "  engine_args: {max-num-seqs: zero}", 5, "max-num-seqs of the profile 'p' must be"),
        (ONE + "  engine_args: {host: 0.0.0.0}", 5, "which only those who start the server may"),
        (ONE + "  engine_args: {chat-template: /etc/shadow}", 5, "chat-template to a file, which only those who start"),
        (ONE + "  engine_args: {generation_config: ../x}", 5, "generation-config to a file, which only those who"),
        (ONE + "  engine_args: {max-num-seqs: 1,\n    max_num_seqs: 2}", 6, "'max-num-seqs' twice"),
        (HEAD + "profiles: [{name: p, tags: {tp: 2}}]", 3, "the native engine runs on one device"),
        (
            ONE + "  tags: {llm_engine: vllm, tp: 4}\n  requires: {device: {kind: gpu, count: 2}}",
            6,
            "needs tp x pp = 4 devices, but asks for 2; set count to 4",
        ),
        ("schema: mx.hub/v1\nmodels:\n- model: {name: a}\n- model: {name: A}", 4, "'A' of a model is taken"),
        (HEAD + "profiles: [{name: !name p}]", 3, "The tag '!name' means nothing here."),
        ("schema: mx.hub/v1\nmodel: {name: ../../etc}", 2, "model.name must be letters"),
    ],
)  # fmt: skip
def test_a_complaint_has_its_line_and_says_what_to_do(text: str, line: int, complaint: str) -> None:
    found = complaints(text)
    assert len(found) == 1
    assert found[0].startswith(f"m.yaml:{line}: ")
    assert complaint in found[0]


def test_several_complaints_come_together_in_the_order_of_lines() -> None:
    found = complaints(HEAD + "zz: 1\nselection: {goal: speed}\nprofiles: [{nam: p}]\n")
    assert [line.split(": ")[0] for line in found] == ["m.yaml:3", "m.yaml:4", "m.yaml:5", "m.yaml:5"]


def test_no_more_than_twenty_complaints_are_shown() -> None:
    found = complaints(HEAD + "".join(f"zz{i}: 1\n" for i in range(50)))
    assert len(found) == 21
    assert found[-1] == "m.yaml: There are 30 more complaints like these."


def test_what_an_alias_repeats_is_complained_of_once() -> None:
    found = complaints("schema: mx.hub/v1\nx-p: &p {nam: x, name: y}\nmodels:\n"
                       "- {model: {name: a}, profiles: [*p]}\n- {model: {name: b}, profiles: [*p]}\n")  # fmt: skip
    assert len(found) == 1


def test_secrets_in_an_address_are_not_repeated() -> None:
    assert "hunter2" not in "\n".join(complaints(HEAD + "sources: ['https://me:hunter2@host/x']"))


def test_an_unknown_scheme_is_only_a_note() -> None:
    manifest = parse_manifest(HEAD + "sources: ['ftp://host/x']")
    assert manifest.models[0].sources == ("ftp://host/x",)
    (note,) = manifest.notes
    assert note.startswith("Line 3: the scheme 'ftp' is none of file, ")


def test_a_file_that_cannot_be_read_is_a_complaint(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="The file cannot be read: No such file or directory"):
        read_manifest(tmp_path / "none.yaml")


def test_the_published_schema_accepts_what_the_reader_does() -> None:
    validator = jsonschema_rs.Draft202012Validator(published_schema())
    packaged = (ROOT / "vllm_mxext/hub/model_manifest.yaml").read_bytes()
    for content in (packaged, WHOLE.encode(), (ROOT / "examples/model_manifest.yaml").read_bytes()):
        assert validator.is_valid(parse(content, "m").plain())
    assert not validator.is_valid({"schema": "mx.hub/v1", "model": {"name": "a"}, "other": 1})


def test_the_example_reads_without_notes() -> None:
    manifest = read_manifest(ROOT / "examples/model_manifest.yaml")
    assert [profile.name for profile in manifest.models[0].profiles] == ["cpu", "cpu-int8", "gpu"]
    assert manifest.notes == ()
