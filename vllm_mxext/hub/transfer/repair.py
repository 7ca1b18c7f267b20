"""`repair_blob()`: fetches only the damaged chunks of a file again; the whole is verified before it takes its place."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.hub.progress import Listener, ignore
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.transfer.fetch import Wanted, fetch_orders
from vllm_mxext.hub.transfer.order import Order, Seed


def repair_blob(
    sha256: str,
    bad_chunks: Sequence[int],
    wanted: Wanted,
    blobs: BlobStore,
    config: NetworkConfig,
    *,
    model: str,
    listener: Listener = ignore,
    stop: threading.Event | None = None,
) -> None:
    """Makes a damaged blob whole; those who have it open go on reading the old bytes.

    Without chunk hashes in the store everything is fetched again.

    Args:
        sha256: its digest.
        bad_chunks: indexes of chunks that do not have their digests; others are checked again.
        wanted: where it can be had.
        blobs: the store.
        config: of the network.
        model: name of the model, for progress.
        listener: told about progress.
        stop: ends it when set.

    Raises:
        DownloadError: the source does not give the file, or `stop` was set.
        ChecksumError: the source's file is another one.
        StoreError: no space, no permission.
    """
    hashes = dict(enumerate(blobs.chunk_hashes(sha256) or ()))
    good = {index: digest for index, digest in hashes.items() if index not in set(bad_chunks)}
    file = replace(wanted.file, sha256=sha256)
    order = Order(sha256, file, wanted.source, 1, Seed(blobs.path(sha256), good))
    fetch_orders((order,), blobs, config, model=model, listener=listener, stop=stop, clock=None, tuning=None)
