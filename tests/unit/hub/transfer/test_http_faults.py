"""Downloads over real HTTP from a server that misbehaves once, at some request: the file is right in the end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.e2e.hub_kills import NAME, FileServer
from tests.hub_servers.reading import network
from tests.hub_servers.stand_in import Fault
from tests.transfer_fakes import NoWaiting, noise, sha256
from vllm_mxext.errors import ChecksumError
from vllm_mxext.hub.sources.opening import open_source
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import Fetched, Wanted, fetch
from vllm_mxext.hub.transfer.order import Tuning

pytestmark = pytest.mark.promise("HUB-TRANSFER-2")

CHUNK = 32 * 1024
DATA = noise(20 * CHUNK + 99)
FLIP = 5 * CHUNK + 1

FAULTS = {
    "flips": Fault(flips=FLIP, times=5),
    "ignores ranges": Fault(ignores_range=True, times=None),
    "ignores one range": Fault(ignores_range=True),
    "cuts": Fault(cuts_at=CHUNK + 7, times=5),
    "resets": Fault(resets_at=CHUNK + 7, times=5),
    "stalls": Fault(stalls_at=CHUNK + 7),
    "truncates": Fault(shortens_to=CHUNK + 7, times=2),
    "says it is busy": Fault(status=503, retry_after="1", times=2),
    "sends a page": Fault(is_page=True, times=2),
    "shifts": Fault(shifts_range=10),
    "calls it another version": Fault(etag='"v2"', times=None),
}


def pull(server: FileServer, folder: Path, digest: str | None, stall_s: float = 30.0) -> Fetched:
    with network(num_connections=3, stall_s=stall_s) as connections:
        source = open_source(f"{server.url}/{NAME}", None, connections)
        (file,) = source.list_files().files
        wanted = Wanted(replace(file, sha256=digest), source)
        tuning = Tuning(range_chunks=4, num_attempts=50)  # on a busy machine a good server seems to stall too
        blobs = BlobStore(folder / "store", CHUNK)
        return fetch([wanted], blobs, connections.config, model="m", clock=NoWaiting(), tuning=tuning)[0]


@pytest.mark.parametrize("after", [1, 3])
@pytest.mark.parametrize("is_known", [True, False])
@pytest.mark.parametrize("name", FAULTS)
def test_one_fault_does_no_harm(tmp_path: Path, name: str, is_known: bool, after: int) -> None:
    if name == "flips" and not is_known:
        pytest.skip("without a digest nobody can know")
    (tmp_path / NAME).write_bytes(DATA)
    with FileServer(tmp_path / NAME) as server:
        server.fails(replace(FAULTS[name], after=after))  # the first request only lists
        stall_s = 0.3 if name == "stalls" else 30.0
        fetched = pull(server, tmp_path, sha256(DATA) if is_known else None, stall_s)
    assert (fetched.size, fetched.sha256) == (len(DATA), sha256(DATA))
    path = BlobStore(tmp_path / "store").find(sha256(DATA))
    assert path is not None
    assert path.read_bytes() == DATA


def test_a_byte_that_always_flips_is_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(DATA)
    with FileServer(tmp_path / NAME) as server:
        server.fails(Fault(flips=FLIP, times=None))
        with pytest.raises(ChecksumError, match=sha256(DATA)):
            pull(server, tmp_path, sha256(DATA))
    assert list(BlobStore(tmp_path / "store").digests()) == []
