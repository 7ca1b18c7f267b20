"""`repair_stored()`: stored models are read again, and what is damaged is downloaded from where it came from."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack, closing
from typing import TYPE_CHECKING

from vllm_mxext.config.hub import HubConfig
from vllm_mxext.errors import DownloadError, HubCause
from vllm_mxext.hub.progress import Listener, ignore
from vllm_mxext.hub.store.model_store import ModelStore
from vllm_mxext.hub.store.snapshot import Snapshot
from vllm_mxext.hub.store.verifying import FileReport, repair, verify

if TYPE_CHECKING:  # they import what only downloads need
    from vllm_mxext.hub.network import Network
    from vllm_mxext.hub.sources.interface import RemoteFile, Source
    from vllm_mxext.hub.transfer.fetch import Wanted


def repair_stored(
    store: ModelStore, snapshots: Sequence[Snapshot], config: HubConfig, *, listener: Listener = ignore
) -> tuple[FileReport, ...]:
    """Makes stored models whole again; nothing is connected to if they are.

    Args:
        store: where they are.
        snapshots: which.
        config: how their sources are reached.
        listener: told about progress.

    Returns:
        The files that were damaged and are not any more.

    Raises:
        HubError: files cannot be read, or had again.
    """
    faults = verify(store, snapshots, listener=listener).faults
    if not faults:
        return ()
    from vllm_mxext.hub.network import Network  # noqa: PLC0415 - only downloads need it

    with Network(config.network) as network, ExitStack() as stack:
        origins = _Origins(network, stack)
        return repair(store, faults, origins.find, config.network, listener=listener)


class _Origins:
    """Finds files at the sources that models came from; each is asked once what it has."""

    def __init__(self, network: Network, stack: ExitStack) -> None:
        self._network = network
        self._stack = stack
        self._listed: dict[tuple[str, str], tuple[Source, dict[str, RemoteFile]]] = {}

    def find(self, fault: FileReport) -> Wanted:
        from vllm_mxext.hub.transfer.fetch import Wanted  # noqa: PLC0415 - only downloads need it

        source, files = self._files(fault.snapshot)
        file = files.get(fault.file.path)
        if file is None or file.sha256 not in (None, fault.file.sha256):
            raise DownloadError(
                f"{source.uri} does not have '{fault.file.path}' of {fault.snapshot.name} as it was any more; pull the "
                "model again.",
                cause=HubCause.NOT_FOUND,
            )
        return Wanted(file, source)

    def _files(self, snapshot: Snapshot) -> tuple[Source, dict[str, RemoteFile]]:
        from vllm_mxext.hub.sources.opening import open_source  # noqa: PLC0415 - only downloads need it

        if not snapshot.uri:
            raise DownloadError(
                f"Nobody knows where {snapshot.name} came from; import it again from its bundle.",
                cause=HubCause.NOT_FOUND,
            )
        key = (snapshot.uri, snapshot.revision)
        if key not in self._listed:
            source = self._stack.enter_context(closing(open_source(snapshot.uri, snapshot.revision, self._network)))
            self._listed[key] = source, {file.path: file for file in source.list_files().files}
        return self._listed[key]
