"""Finds out what an adapter's files hold and whether they fit a model, before any weight is read; converts them."""

from __future__ import annotations

import itertools
import tarfile
from collections.abc import Callable
from pathlib import Path

from vllm_mxext.config.model_spec import ModelSpec
from vllm_mxext.lora.convert import WritableFormat, write_adapter
from vllm_mxext.lora.files import AdapterFiles, AdapterFormat
from vllm_mxext.lora.fitting import check_fit
from vllm_mxext.lora.formats import gguf, nemo, peft, trtllm
from vllm_mxext.lora.formats.gguf_file import MAGIC as GGUF_MAGIC
from vllm_mxext.lora.opening import AdapterFolder, parsing, refusal

_Reader = Callable[[AdapterFolder, Path, ModelSpec, bool], AdapterFiles]
_READERS: dict[AdapterFormat, _Reader] = {
    "huggingface": peft.read_peft,
    "trtllm": lambda folder, path, spec, _: trtllm.read_trtllm(folder, path, spec),
    "gguf": lambda folder, path, spec, _: gguf.read_gguf_adapter(folder, path, spec),
    "nemo": nemo.read_nemo,
}
_MAX_LISTED = 1000
_TAR_MAGIC = b"ustar"


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
        found = detect_formats(path)
        if form is None and not found:
            raise refusal(_why_none(path))
        if form is not None and form not in found:
            raise refusal(f"{path} holds no adapter of the format {form}; leave the format out and it is found out.")
        adapter = _READERS[form or found[0]](AdapterFolder(path), path, spec, allows_pickle)
    check_fit(adapter, spec, max_rank)
    return adapter


class TrtllmLoraSource:
    """A folder of adapters, each in a folder or file of its own: checks them and converts them, also for TensorRT-LLM.

    Args:
        folder: where the adapters are.
        spec: the model that they are to change.
        max_rank: largest rank that is served.
        allows_pickle: also read files that have to be unpickled.
    """

    def __init__(self, folder: Path, spec: ModelSpec, *, max_rank: int, allows_pickle: bool = False) -> None:
        self._folder, self._spec = folder, spec
        self._max_rank, self._allows_pickle = max_rank, allows_pickle

    def names(self) -> list[str]:
        """Names of what looks like an adapter in the folder, in order.

        Raises:
            AdapterError: the folder cannot be read.
        """
        with parsing(self._folder):
            return sorted(one.name for one in itertools.islice(self._folder.iterdir(), _MAX_LISTED) if _has_format(one))

    def inspect(self, name: str) -> AdapterFiles:
        """Checks one of them.

        Raises:
            AdapterError: there is none of this name, or it is not fit to be served.
        """
        if name not in self.names():
            raise refusal(f"{self._folder} holds no adapter named {name!r}; it holds {', '.join(self.names()[:20])}.")
        return inspect_adapter(
            self._folder / name, self._spec, max_rank=self._max_rank, allows_pickle=self._allows_pickle
        )

    def convert(self, name: str, target: Path, form: WritableFormat) -> None:
        """Writes one of them into a new folder in another layout.

        Raises:
            AdapterError: it is not fit to be served, the layout has no place for a part of it, or the folder exists.
        """
        write_adapter(self.inspect(name), target, form)


def detect_formats(path: Path) -> list[AdapterFormat]:
    """Formats that an adapter is stored in, by the names of its files; the one that says most comes first."""
    if path.is_file():
        with path.open("rb") as file:
            beginning = file.read(tarfile.BLOCKSIZE)
        if beginning.startswith(GGUF_MAGIC):
            return ["gguf"]
        return ["nemo"] if path.suffix == nemo.ENDING or beginning[257:262] == _TAR_MAGIC else []
    is_there: dict[AdapterFormat, bool] = {
        "huggingface": (path / peft.CONFIG_NAME).exists(),
        "trtllm": (path / trtllm.CONFIG_NAME).exists() and (path / trtllm.WEIGHTS_NAME).exists(),
        "gguf": bool(AdapterFolder(path).names(gguf.ENDING)),
        "nemo": bool(AdapterFolder(path).names(nemo.ENDING)),
    }
    return [form for form, is_found in is_there.items() if is_found]


def _has_format(path: Path) -> bool:
    return (path.is_file() or path.is_dir()) and bool(detect_formats(path))


def _why_none(path: Path) -> str:
    if path.is_file():
        folder = path.parent if (path.parent / peft.CONFIG_NAME).exists() else None
        return f"{path} is not an adapter; " + (f"give its folder {folder}." if folder else "give an adapter's folder.")
    inside = sorted(one.name for one in itertools.islice(path.iterdir(), _MAX_LISTED) if _has_format(one))
    if inside:
        return f"{path} holds adapters ({', '.join(inside[:5])}), but is none itself; give the path of one of them."
    if (path / "config.json").exists():
        return f"{path} holds a whole model, not an adapter; serve it with --model."
    if any((path / name).exists() for name in (peft.SAFETENSORS_NAME, peft.BIN_NAME)):
        return f"{path} has the weights of an adapter, but no {peft.CONFIG_NAME}; copy that too."
    return (
        f"{path} holds no adapter: neither {peft.CONFIG_NAME} nor {trtllm.CONFIG_NAME}, {gguf.ENDING} or {nemo.ENDING}."
    )
