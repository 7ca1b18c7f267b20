"""Whatever is done to a manifest, it is read or refused with a line, and nothing else happens.

VLLM_MXEXT_TEST_LONG=1 makes 5,000 mutations of 500.
"""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.unit.hub.manifest.test_importing import NIM_LIST, NIM_MAP, NIM_WRAPPED
from tests.unit.hub.manifest.test_reading import ROOT, WHOLE
from tests.unit.hub.manifest_texts import parse_manifest
from vllm_mxext.errors import ManifestError
from vllm_mxext.hub.manifest.model import Manifest

NUM_MUTATIONS = 5000 if os.environ.get("VLLM_MXEXT_TEST_LONG") == "1" else 500

PLAIN = "- {name: llama, path: ./x, precision: fp16, engine: native, tp: '1', color: red}\n"
SEEDS = (WHOLE, NIM_MAP, NIM_LIST, NIM_WRAPPED, PLAIN, (ROOT / "examples/model_manifest.yaml").read_text("utf-8"))
ODD_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 2**63, 10**29, 1e308, -0.5, "", " ", "\x00", "\x7f", "..", "../..", "/", "\\", "C:\\x", "é", "𝄞",
    "\u202e", "a" * 3000, "default", "NaN", "1GiB", "hf://", "://", "s3://[", "x" * 64, "ab" * 32, [], {}, [[]], [{}],
    {"": ""}, {"a": {"b": {"c": 1}}}, ["a"] * 50, {"<<": {"a": 1}}, "!name x", "&a", "*a", "%", "@", "`", "? x", "- -",
)  # fmt: skip
ODD_BYTES = (b"\x00", b"\xff", b"\xef\xbb\xbf", b"\t", b"\n", b"\r", b": ", b"- ", b"&a ", b"*a ", b"!x ", b"!!binary ",
             b"[", b"]", b"{", b"}", b"'", b'"', b"#", b"|\n", b">\n", b"%YAML 9.9\n", b"---\n", b"...\n", b"<<: ",
             b"\xed\xa0\x80", b"\xe2\x80\xa8", b"0" * 5000, b"[" * 200, b"? ")  # fmt: skip


def outcome(content: bytes) -> str:
    try:
        manifest = parse_manifest(content, "m.yaml", folder=Path("/x"))
    except ManifestError as error:
        lines = str(error).splitlines()
        assert all(re.match(r"m\.yaml(:\d+)?: .", line) for line in lines), lines
        assert len(lines) <= 21
        assert max(map(len, lines)) < 1500
        return "refused"
    assert isinstance(manifest, Manifest)
    assert all(profile.id for entry in manifest.models for profile in entry.profiles)
    return "read"


def mutated_bytes(content: bytes, chance: random.Random) -> bytes:
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        where = chance.randrange(len(data) + 1)
        length = chance.choice((0, 1, 1, 5, 40))
        what = chance.randrange(4)
        if what == 0:
            data[where : where + length] = b""
        elif what == 1:
            data[where:where] = chance.choice(ODD_BYTES)
        elif what == 2:
            data[where : where + 1] = bytes([chance.randrange(256)])
        else:
            other = chance.randrange(len(data) + 1)
            data[where:where] = data[other : other + 60]
    return bytes(data)


def mutated_structure(value: Any, chance: random.Random) -> Any:
    """Returns a copy with one or a few places changed: a value, a key, an entry twice or gone."""
    if isinstance(value, dict) and value and chance.random() < 0.9:
        copy = dict(value)
        key = chance.choice(list(copy))
        what = chance.random()
        if what < 0.12:
            del copy[key]
        elif what < 0.22:
            copy[str(key)[:-1] or "x"] = copy.pop(key)
        elif what < 0.3:
            copy[chance.choice(("x-y", "name", "tags", "schema", "models", "id", "é"))] = chance.choice(ODD_VALUES)
        else:
            copy[key] = mutated_structure(copy[key], chance)
        return copy
    if isinstance(value, list) and value and chance.random() < 0.9:
        copied = list(value)
        where = chance.randrange(len(copied))
        if chance.random() < 0.2:
            copied.append(copied[where])
        else:
            copied[where] = mutated_structure(copied[where], chance)
        return copied
    return chance.choice(ODD_VALUES)


class Loader(yaml.SafeLoader):
    """Takes tags of NIM for what they stand before."""


Loader.add_multi_constructor("!", lambda loader, _, node: (
    loader.construct_scalar(node) if isinstance(node, yaml.ScalarNode) else loader.construct_mapping(node, deep=True)
))  # fmt: skip


@pytest.mark.promise("HUB-MANIFEST-2")
def test_mutations_are_read_or_refused_and_nothing_else() -> None:
    chance = random.Random(20261121)
    structures = [yaml.load(seed, Loader) for seed in SEEDS]
    seen: dict[str, int] = {"read": 0, "refused": 0}
    for number in range(NUM_MUTATIONS):
        which = chance.randrange(len(SEEDS))
        if number % 2:
            content = mutated_bytes(SEEDS[which].encode(), chance)
        else:
            structure = structures[which]
            for _ in range(chance.randint(1, 3)):
                structure = mutated_structure(structure, chance)
            content = yaml.safe_dump(structure, allow_unicode=True).encode(errors="surrogatepass")
        seen[outcome(content)] += 1
    assert min(seen.values()) > NUM_MUTATIONS // 50, "the mutations are too weak or too strong to say anything"
