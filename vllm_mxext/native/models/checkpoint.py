"""Sources of weights: a folder of safetensors files, or seeded noise."""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch

from vllm_mxext.errors import ConfigError
from vllm_mxext.native.models.safetensors_file import TensorEntry, read_header, read_tensor

Shape = tuple[int, ...]

_INDEX_NAME = "model.safetensors.index.json"
_FILE_NAME = "model.safetensors"
_MAX_NAMES_IN_ERROR = 5
_NOISE_WIDTH = 0.02
_INT4_SCALE = _NOISE_WIDTH / 8
_INT4_BITS = 2**31
_INT4_MIDDLE_WORD = 0x88888888 - 2**32


class WeightSource(Protocol):
    """Where weights come from."""

    def check(self, expected: Mapping[str, Shape], ignored_suffixes: Sequence[str]) -> None:
        """Compares what is there with what a model needs.

        Raises:
            ConfigError: tensors are missing, left over or of another shape; the text names them.
        """
        ...

    def read(self, name: str, target: torch.Tensor) -> None:
        """Fills `target`, a contiguous CPU tensor, with tensor `name`, converting among floating or integer dtypes.

        Raises:
            ConfigError: the values cannot be read, or not be held in the target's dtype.
        """
        ...


class SafetensorsSource:
    """A checkpoint folder with `model.safetensors`, or shards and their index.

    Args:
        folder: the checkpoint folder.

    Raises:
        ConfigError: no safetensors file, a shard is missing, or a file is broken.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._entries: dict[str, TensorEntry] = {}
        for path in weight_files(folder):
            self._entries |= read_header(path)

    def check(self, expected: Mapping[str, Shape], ignored_suffixes: Sequence[str]) -> None:
        """See `WeightSource.check`."""
        entries = self._entries
        missing = [name for name in expected if name not in entries]
        unexpected = [name for name in entries if name not in expected and not name.endswith(tuple(ignored_suffixes))]
        misshapen = [
            f"{name} {list(entries[name].shape)} instead of {list(shape)}"
            for name, shape in expected.items()
            if name in entries and entries[name].shape != shape
        ]
        problems = [
            f"{kind}: {_some(names)}"
            for kind, names in (("missing", missing), ("unexpected", unexpected), ("wrong shape", misshapen))
            if names
        ]
        if problems:
            raise ConfigError(
                f"The tensors in {self._folder} do not fit its config.json ({'; '.join(problems)}); "
                "download the checkpoint again, or point --model at the folder its config.json belongs to."
            )

    def read(self, name: str, target: torch.Tensor) -> None:
        """See `WeightSource.read`."""
        read_tensor(name, self._entries[name], target)


class NoiseSource:
    """Weights drawn from a seed: a tensor's values depend on its name and the seed alone.

    Args:
        seed: any integer.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed

    def check(self, expected: Mapping[str, Shape], ignored_suffixes: Sequence[str]) -> None:
        """Accepts every model."""

    def read(self, name: str, target: torch.Tensor) -> None:
        """Fills norms with ones and everything else with small uniform noise, made of scale, zero and words if int4."""
        if name.endswith("norm.weight"):
            target.fill_(1.0)
            return
        if name.endswith((".scales", ".weight_scale")):
            target.fill_(_INT4_SCALE)
            return
        if name.endswith((".qzeros", ".weight_zero_point")):
            target.fill_(_INT4_MIDDLE_WORD)
            return
        # torch's CPU generator uses 32 bits of its seed
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self._seed} {name}".encode()))
        if target.dtype == torch.int32:
            target.random_(-_INT4_BITS, _INT4_BITS, generator=generator)
            return
        target.uniform_(-_NOISE_WIDTH, _NOISE_WIDTH, generator=generator)


def weight_files(folder: Path) -> list[Path]:
    """Finds the files that hold a checkpoint's weights.

    Raises:
        ConfigError: there is no safetensors file, or the index is broken or names files that are missing.
    """
    index_path = folder / _INDEX_NAME
    if index_path.is_file():
        try:
            names = sorted(set(json.loads(index_path.read_text(encoding="utf-8"))["weight_map"].values()))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{index_path} is broken ({error!r}); download the checkpoint again.") from error
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ConfigError(f"{folder} lacks {_some(missing)} of its index; download the checkpoint again.")
        return [folder / name for name in names]
    if (folder / _FILE_NAME).is_file():
        return [folder / _FILE_NAME]
    raise ConfigError(
        f"{folder} has no {_FILE_NAME} and no {_INDEX_NAME}; the native engine reads safetensors checkpoints only."
    )


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:_MAX_NAMES_IN_ERROR])
    return shown if len(names) <= _MAX_NAMES_IN_ERROR else f"{shown} and {len(names) - _MAX_NAMES_IN_ERROR} more"
