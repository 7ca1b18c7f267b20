"""`fetch()`: files of sources become blobs of a store, many at once, each resumed where it was left and verified."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, replace

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.errors import DownloadError
from vllm_mxext.hub.progress import Listener, ignore
from vllm_mxext.hub.sources.interface import RemoteFile, Source
from vllm_mxext.hub.store.blobs import BlobStore, is_sha256
from vllm_mxext.hub.transfer.crew import Crew
from vllm_mxext.hub.transfer.meter import Meter
from vllm_mxext.hub.transfer.order import Order, Tuning
from vllm_mxext.hub.transfer.pace import Clock, SystemClock


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file that is wanted, and where it is.

    Attributes:
        file: of the source's listing, with the digest that a manifest promises if there is one.
        source: where from.
    """

    file: RemoteFile
    source: Source


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file that is in the store.

    Attributes:
        path: inside the model.
        size: bytes.
        sha256: of them: the promised one, or the one that was seen.
    """

    path: str
    size: int
    sha256: str


def fetch(
    wanted: Sequence[Wanted],
    blobs: BlobStore,
    config: NetworkConfig,
    *,
    model: str,
    listener: Listener = ignore,
    stop: threading.Event | None = None,
    clock: Clock | None = None,
    tuning: Tuning | None = None,
) -> tuple[Fetched, ...]:
    """Downloads what is not in the store yet; returns the files in the order in which they are wanted.

    What arrives is kept whatever happens, and the next call goes on with it.

    Args:
        wanted: the files.
        blobs: where they are kept.
        config: how many connections, bytes per second and so on.
        model: name of the model, for progress.
        listener: told about progress.
        stop: ends it when set.
        clock: time.
        tuning: sizes and numbers that tests choose otherwise.

    Raises:
        DownloadError: a source does not give a file, or `stop` was set.
        ChecksumError: a file is not what was promised, twice.
        StoreError: no space, no permission.
        KeyboardInterrupt: after all connections are closed.
    """
    orders: dict[str, Order] = {}
    keys = []
    for want in wanted:
        file = _checked(want)
        key = file.sha256 or _unnamed_key(want)
        keys.append(key)
        orders.setdefault(key, Order(key, file, want.source)).num_paths += 1
    results = fetch_orders(
        tuple(orders.values()), blobs, config, model=model, listener=listener, stop=stop, clock=clock, tuning=tuning
    )
    return tuple(Fetched(want.file.path, *results[key]) for want, key in zip(wanted, keys, strict=True))


def fetch_orders(
    orders: tuple[Order, ...],
    blobs: BlobStore,
    config: NetworkConfig,
    *,
    model: str,
    listener: Listener,
    stop: threading.Event | None,
    clock: Clock | None,
    tuning: Tuning | None,
) -> dict[str, tuple[int, str]]:
    """Downloads contents, as `fetch()` does files; returns size and digest by the key of the order."""
    clock = clock or SystemClock()
    crew = Crew(orders, blobs, config, Meter(model, listener, clock), clock, tuning or Tuning())
    return crew.run(stop or threading.Event())


def _checked(want: Wanted) -> RemoteFile:
    if want.file.sha256 is None:
        return want.file
    digest = want.file.sha256.lower()
    if not is_sha256(digest):
        raise DownloadError(
            f"'{want.file.sha256:.80}' is no SHA-256 for {want.file.path} of {want.source.uri}; it has 64 hexadecimal "
            "digits."
        )
    return replace(want.file, sha256=digest)


def _unnamed_key(want: Wanted) -> str:
    """Names a file whose content is not known, so that a later attempt finds what has arrived of it."""
    text = "\0".join((want.source.uri, want.file.path, want.file.locator))
    return f"unnamed-{hashlib.sha256(text.encode(errors='surrogatepass')).hexdigest()[:40]}"
