"""`ServedModel`: what a running server knows of where its model came from and why it runs as it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Selection
from vllm_mxext.hub.manifest.model import Manifest, ModelEntry
from vllm_mxext.hub.store.snapshot import Snapshot


@dataclass(frozen=True, slots=True)
class ServedModel:
    """The model of a server.

    Attributes:
        entry: what the manifest says of it.
        manifest: where that is written.
        folder: its files.
        hardware: the machine it was chosen for.
        selection: how its profile was chosen; None if the model is a folder and no profile was asked for.
        snapshot: the stored revision; None if it is a folder that the hub did not make.
    """

    entry: ModelEntry
    manifest: Manifest
    folder: Path
    hardware: Hardware
    selection: Selection | None = None
    snapshot: Snapshot | None = None
