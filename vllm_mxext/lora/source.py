"""Finds out what an adapter's files hold and whether they fit a model, before any weight is read."""

from __future__ import annotations

from pathlib import Path

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.lora.files import AdapterFiles, AdapterFormat


def inspect_adapter(
    path: Path, spec: ModelSpec, *, max_rank: int, form: AdapterFormat | None = None, allows_pickle: bool = False
) -> AdapterFiles:
    """Reads headers and checks everything that can be checked without the weights.

    Args:
        path: folder or file of the adapter.
        spec: the model that it is to change.
        max_rank: largest rank that is served.
        form: its format; found out by default.
        allows_pickle: also read files that have to be unpickled.

    Raises:
        AdapterError: the files are missing, broken, of no known format, or do not fit the model or the limits.
    """
    raise NotImplementedError
