"""Looks at an adapter's files as an engine's configuration wants it."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import cast, get_args

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.engine.client import AdapterSource
from vllm_mxext.errors import AdapterError, UnsupportedFeatureError
from vllm_mxext.lora.files import AdapterFiles, AdapterFormat
from vllm_mxext.lora.source import inspect_adapter

InspectFiles = Callable[[AdapterSource], AdapterFiles]
"""Finds out what is at the path of a source and whether it fits; raises `AdapterError`."""


def make_inspection(config: EngineConfig) -> InspectFiles:
    """Returns what looks at adapters for the model of this engine, within its limits."""
    lora, spec = config.lora, config.model.spec

    def inspect(source: AdapterSource) -> AdapterFiles:
        if lora is None:
            raise no_adapters()
        formats = get_args(AdapterFormat)
        if source.format is not None and source.format not in formats:
            raise AdapterError(f"format must be one of {', '.join(formats)}, got '{source.format}'.", param="format")
        if "\0" in source.path:
            raise AdapterError("The path of an adapter must not contain a null character.", param="lora_path")
        return inspect_adapter(
            Path(os.path.realpath(os.path.expanduser(source.path))),
            spec,
            max_rank=lora.max_lora_rank,
            form=cast("AdapterFormat | None", source.format),
            allows_pickle=lora.allows_pickle,
        )

    return inspect


def no_adapters() -> UnsupportedFeatureError:
    """Returns the error for whoever wants an adapter of an engine that serves none."""
    return UnsupportedFeatureError(
        "This engine serves no LoRA adapters; start it with --enable-lora (offline: enable_lora=True)."
    )
