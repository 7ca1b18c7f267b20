"""Finds out what an adapter's files hold and whether they fit a model, before any weight is read."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.lora.files import AdapterFiles, AdapterFormat
from vllm_mxext.lora.fitting import check_fit
from vllm_mxext.lora.formats.peft import CONFIG_NAME, read_peft
from vllm_mxext.lora.opening import AdapterFolder, parsing, refusal

_Reader = Callable[[AdapterFolder, Path, ModelSpec, bool], AdapterFiles]
_READERS: dict[AdapterFormat, _Reader] = {"huggingface": read_peft}
_MAX_LISTED = 1000


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
    with parsing(path):
        if not path.exists():
            raise refusal(f"The adapter {path} does not exist; give the folder or file of an adapter.")
        adapter = _READERS[form or detect_format(path)](AdapterFolder(path), path, spec, allows_pickle)
    check_fit(adapter, spec, max_rank)
    return adapter


def detect_format(path: Path) -> AdapterFormat:
    """Finds out how an adapter is stored.

    Raises:
        AdapterError: it is no adapter, or several.
    """
    if path.is_file():
        raise refusal(f"{path} is no adapter; give the folder that {CONFIG_NAME} is in.")
    if (path / CONFIG_NAME).exists():
        return "huggingface"
    inside = sorted(one.parent.name for one in itertools.islice(path.glob(f"*/{CONFIG_NAME}"), _MAX_LISTED))
    if inside:
        raise refusal(f"{path} holds adapters in folders ({', '.join(inside[:5])}); give the path of one of them.")
    if (path / "config.json").exists() and next(path.glob("*.safetensors"), None):
        raise refusal(f"{path} holds a whole model, not an adapter; serve it with --model.")
    raise refusal(f"{path} holds no adapter: there is no {CONFIG_NAME} in it.")
