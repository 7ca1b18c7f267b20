"""Whatever a server answers, the error is one of this project's, with a sentence."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from tests.hub_servers.reading import network
from tests.hub_servers.stand_in import Answer, Asked, StandIn
from vllm_mxext.errors import HubError
from vllm_mxext.hub.sources.opening import open_source

STRANGE = (
    None,
    [],
    "text",
    7,
    {},
    {"sha": None, "siblings": []},
    {"sha": "0" * 40, "siblings": [{}]},
    {"sha": "0" * 40, "siblings": [{"rfilename": 7}]},
    {"sha": "../../etc", "siblings": [{"rfilename": "a"}]},
    {"sha": "0" * 40, "siblings": [{"rfilename": "a", "size": "much"}]},
    {"sha": "0" * 40, "siblings": [{"rfilename": "a", "size": float("inf")}]},
    {"Data": None},
    {"Data": {"Files": [{}]}},
    {"Data": {"Files": [{"Type": "tree", "Path": "round"}] * 2999}},
    {"Data": {"Files": [{"Type": "tree", "Path": "round"}] * 3000}},
    {"Data": {"Files": [{"Type": "blob", "Path": 7}]}},
    {"Data": {"Files": [{"Type": "blob", "Path": "a", "Size": "much"}]}},
    {"items": [{}]},
    {"items": [{"name": "a", "size": "much", "generation": "1"}]},
    {"items": 7},
    {"modelFiles": [{}]},
    {"modelFiles": [{"path": "a", "sizeInBytes": "much"}]},
    {"filepath": 7},
    {"paginationInfo": 7},
    {"layers": [7]},
    {"layers": [{"annotations": {"org.cncf.model.filepath": "a"}, "digest": f"sha256:{'0' * 64}"}]},
    {"layers": [{"annotations": 7}]},
    b"[" * 200_000,
)


class Strange(StandIn):
    """Answers everything with the same value."""

    value: object = None

    def answer(self, asked: Asked) -> Answer:
        content = self.value if isinstance(self.value, bytes) else json.dumps(self.value).encode()
        return Answer(200, {"Content-Type": "application/json"}, content)


@pytest.fixture(scope="module")
def strange() -> Iterator[Strange]:
    with Strange() as running:
        yield running


@pytest.mark.parametrize(
    "uri", ["hf://acme/tiny", "modelscope://acme/tiny", "gs://bucket/tiny", "ngc://acme/tiny:1", "oci"]
)
def test_a_list_that_makes_no_sense_is_one_clear_sentence(strange: Strange, uri: str, impatient: None) -> None:
    names = ("HF_ENDPOINT", "MODELSCOPE_ENDPOINT", "STORAGE_EMULATOR_HOST", "NGC_ENDPOINT")
    connections = network(dict.fromkeys(names, strange.url))
    uri = uri if uri != "oci" else f"oci://{strange.url.removeprefix('http://')}/acme/tiny"
    for value in STRANGE:
        strange.value = value
        with pytest.raises(HubError) as caught:
            open_source(uri, None, connections).list_files()
        assert str(caught.value).endswith(".")
