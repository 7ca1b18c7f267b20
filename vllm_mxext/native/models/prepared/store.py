"""`PreparedWeights`: one start's use of its prepared file, from the search to the writing of a new one."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import sys
import threading
import time
from pathlib import Path
from typing import BinaryIO

import torch

from vllm_mxext.config.engine import EngineConfig, ModelConfig, PreparedConfig
from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.logger import init_logger
from vllm_mxext.native.kernels.compiled import CompiledKernels
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.models.checkpoint import weight_files
from vllm_mxext.native.models.prepared import memory, writing
from vllm_mxext.native.models.prepared.file_format import BadFileError, read_header
from vllm_mxext.native.models.prepared.identity import Identity, identify, sample_digest
from vllm_mxext.native.models.prepared.parts import CollectedParts, Parts, PreparedParts

logger = init_logger(__name__)

MIN_WEIGHTS_BYTES = 64 * 2**20
"""Smaller checkpoints are read and packed in no time."""

SUFFIX = ".weights"
"""Ends the name of every prepared file."""

_SPARED_DISK_BYTES = 2**30
_NICENESS = 10
_WRITE_DELAY_S = 5.0
"""Writing waits so long for the first requests, which it would slow down."""


class PreparedWeights:
    """Finds the prepared file of a model, or collects what a new one should hold and writes it when told to.

    Nothing that goes wrong with the file fails a start: the checkpoint is read instead, and the log has one line.

    Args:
        config: where prepared files are kept, and how much of them.
        model: whose weights they are.
        kernels: kernel set that packs or packed them.
        files: the checkpoint's weight files.
        num_threads: cores that may read.
    """

    def __init__(
        self,
        config: PreparedConfig,
        model: ModelConfig,
        kernels: CompiledKernels,
        files: tuple[Path, ...],
        num_threads: int,
    ) -> None:
        self._config = config
        self._model = model
        self._kernels = kernels
        self._files = files
        self._num_threads = num_threads
        self._collected: CollectedParts | None = None
        self._identity = self._identify()

    @property
    def path(self) -> Path:
        """The model's prepared file; one per checkpoint folder, dtype, quantization and layout of the kernels."""
        model = self._model
        key = "\n".join((str(model.path), model.dtype, model.quantization, self._kernels.layout))
        name = re.sub(r"[^A-Za-z0-9._-]", "_", model.path.name)[:64]
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        return self._config.folder / f"{name}-{model.dtype}-{model.quantization}-{digest}{SUFFIX}"

    def open(self) -> Parts:
        """Returns the parts of the prepared file, or ones that are made afresh and collected for `save()`."""
        path = self.path
        try:
            with path.open("rb", buffering=0) as file:
                parts, how = self._read(file)
            with contextlib.suppress(OSError):
                os.utime(path)  # the last use, by which files are dropped
            logger.info("Prepared weights: %s %s.", how, path)
        except FileNotFoundError:
            logger.info("Prepared weights: none yet for this model, written when it is ready.")
        except (BadFileError, OSError) as error:
            logger.warning("Prepared weights: %s is not used, because %s.", path, error)
            with contextlib.suppress(OSError):
                path.unlink()
        else:
            return parts
        self._collected = CollectedParts()
        return self._collected

    def save(self) -> threading.Thread | None:
        """Writes what was collected in the background; None if there is nothing to write.

        A program waits for the thread at its end, so that a short one leaves its file too; killing it is safe.
        """
        parts, self._collected = self._collected, None
        if parts is None:
            return None
        thread = threading.Thread(target=self._save, args=(parts,), name="prepared-weights")
        thread.start()
        return thread

    def _identify(self) -> Identity:
        return identify(self._model, self._kernels.layout, self._files)

    def _read(self, file: BinaryIO) -> tuple[Parts, str]:
        header, start = read_header(file, os.fstat(file.fileno()).st_size)
        if header.identity != self._identity:
            raise BadFileError(_difference(header.identity, self._identity))
        # Mapped before anything else of the data is read: what is in the page cache already, stays in small pages.
        data, how = memory.map_data(file.fileno(), start, header.data_bytes), "mapped"
        if data is None:
            data = memory.read_data(file.fileno(), start, header.data_bytes, self._num_threads)
            how = "read"
        if _digest(data) != header.samples:
            raise BadFileError("its data is damaged")
        return PreparedParts(header, data, self._kernels), how

    def _check_unchanged(self) -> None:
        if self._identify() != self._identity:
            raise BadFileError("the checkpoint has changed since the start")

    def _save(self, parts: CollectedParts) -> None:
        threading.main_thread().join(_WRITE_DELAY_S)  # a program that ends has no more requests
        began_s = time.monotonic()
        try:
            _yield_to_requests()
            self._config.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._check_unchanged()
            header, pieces = writing.plan_file(self._identity, parts)
            make_room(self._config.folder, self.path, header.data_bytes, self._config.limit_bytes)
            writing.write_file(self.path, header, pieces)
        except (BadFileError, OSError) as error:
            logger.warning("Prepared weights: not written, because %s.", error)
        else:
            seconds = time.monotonic() - began_s
            logger.info(
                "Prepared weights: wrote %s, %s, in %.1f s.", self.path, format_bytes(header.data_bytes), seconds
            )


def find_prepared_weights(config: EngineConfig, kernels: Kernels) -> PreparedWeights | None:
    """Returns how this start uses prepared weights; None if it does not: switched off, or not worth a file.

    Raises:
        ConfigError: the checkpoint has no weight files, or not all of them.
    """
    model = config.model
    if config.prepared is None or model.load_format == "dummy" or not isinstance(kernels, CompiledKernels):
        return None
    if model.spec.int4 is not None:  # packed from the checkpoint's words in a fraction of the time
        return None
    files = tuple(weight_files(model.path))
    try:
        if sum(path.stat().st_size for path in files) < MIN_WEIGHTS_BYTES:
            return None
        return PreparedWeights(config.prepared, model, kernels, files, config.device.num_threads)
    except OSError:  # a weight file cannot be read, of which the loader says more
        return None


def make_room(folder: Path, path: Path, num_bytes: int, limit_bytes: int) -> None:
    """Removes the prepared files that were used longest ago, until a new one is within the limit.

    Args:
        folder: where they are.
        path: the new one, which replaces its predecessor.
        num_bytes: its size.
        limit_bytes: all files together, at most.

    Raises:
        OSError: it is larger than the limit, or would fill the disk.
    """
    writing.remove_leftovers(folder)
    if num_bytes > limit_bytes:
        limit = format_bytes(limit_bytes)
        raise OSError(f"they take {format_bytes(num_bytes)} of the {limit} that --prepared-weights-limit allows")
    others = _others(folder, path)
    total_bytes = num_bytes + sum(status.st_size for _, status in others)
    for file, status in others:
        if total_bytes <= limit_bytes:
            break
        logger.info("Prepared weights: removing %s, which was used longest ago.", file)
        file.unlink(missing_ok=True)  # a process that has it mapped keeps it until it ends
        total_bytes -= status.st_size
    free_bytes = shutil.disk_usage(folder).free
    if free_bytes < num_bytes + _SPARED_DISK_BYTES:
        raise OSError(f"they take {format_bytes(num_bytes)} and the disk has {format_bytes(free_bytes)} left")


def _others(folder: Path, path: Path) -> list[tuple[Path, os.stat_result]]:
    """All prepared files but one, those used longest ago first."""
    entries = []
    for file in folder.glob(f"*{SUFFIX}"):
        with contextlib.suppress(FileNotFoundError):  # another process makes room, too
            if file != path:
                entries.append((file, file.stat()))
    return sorted(entries, key=lambda entry: entry[1].st_mtime_ns)


def _digest(data: torch.Tensor) -> str:
    def read_at(offset: int, num_bytes: int) -> bytes:
        return data[offset : offset + num_bytes].numpy().tobytes()

    return sample_digest(read_at, data.nbytes)


def _difference(found: Identity, wanted: Identity) -> str:
    """Says why a file is stale."""
    if found.version != wanted.version or found.layout != wanted.layout:
        return "it was made by another version of this package"
    if found.files != wanted.files:
        return "the checkpoint has changed"
    return "the model's configuration has changed"


def _yield_to_requests() -> None:
    """Gives this thread a tenth of a core that a step wants; less would hold up steps, which need its Python lock."""
    if sys.platform == "linux":  # elsewhere priorities belong to processes
        thread_id = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread_id, os.getpriority(os.PRIO_PROCESS, thread_id) + _NICENESS)
