"""`LoRASlots`: adapters in host memory and in the slots of the model's linear layers."""

from __future__ import annotations

import ctypes
import queue
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.errors import AdapterError
from vllm_mxext.logger import init_logger
from vllm_mxext.lora.files import AdapterFiles, AdapterFormat
from vllm_mxext.lora.source import inspect_adapter
from vllm_mxext.native.core_messages import AdapterSpec
from vllm_mxext.native.kernels.adapters import PackedAdapter
from vllm_mxext.native.kernels.interface import Kernels
from vllm_mxext.native.layers.adapter_ends import AdapterEnds
from vllm_mxext.native.models.adapter_weights import AdapterReader
from vllm_mxext.native.models.decoder import DecoderWeights
from vllm_mxext.native.protocol import AdapterKey, ReadAdapter
from vllm_mxext.native.worker.loaded_model import DTYPES

logger = init_logger(__name__)

_M_ARENA_MAX = -8  # from malloc.h of glibc; others have no such option and ignore it


@dataclass(frozen=True, slots=True)
class HostAdapter:
    """An adapter in host memory.

    Attributes:
        layers: index of a linear layer -> what it does to it.
        ends: its own embedding and head, if it has any.
    """

    layers: Mapping[int, PackedAdapter]
    ends: AdapterEnds | None

    @property
    def num_bytes(self) -> int:
        """Bytes it takes."""
        ends = 0 if self.ends is None else self.ends.num_bytes
        return sum(layer.num_bytes for layer in self.layers.values()) + ends


class LoRASlots:
    """The adapters of one model. Files are read in a thread; everything else happens between steps.

    Args:
        config: the engine.
        weights: the model's; their linear layers get slots.
        kernels: kernel set that packed them, an object that nobody else uses.
    """

    def __init__(self, config: EngineConfig, weights: DecoderWeights, kernels: Kernels) -> None:
        assert config.lora is not None
        self._config = config
        self._lora = config.lora
        self._device = torch.device(config.device.device)
        self._reader = AdapterReader(weights, config.model.spec, kernels, DTYPES[config.model.dtype])
        self._kernels = kernels
        self._layers = []
        for linear in self._reader.linears:
            packed = linear.packed
            linear.adapters = kernels.make_adapter_layer(
                packed.in_features, packed.out_features, self._lora.max_loras + 1
            )
            self._layers.append(linear.adapters)
        share_one_arena()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="adapter")  # the kernels serve one thread
        self._results: queue.SimpleQueue[tuple[AdapterKey, HostAdapter | str]] = queue.SimpleQueue()
        self._reading: set[AdapterKey] = set()
        self._held: dict[AdapterKey, HostAdapter] = {}
        self._placed: dict[int, AdapterKey] = {}
        self.ends: dict[int, AdapterEnds] = {}
        """Slot -> embedding and head of the adapters that have their own."""

    def start(self, spec: AdapterSpec) -> None:
        """Begins to read an adapter."""
        key = (spec.adapter_id, spec.generation)
        self._reading.add(key)
        self._executor.submit(self._read, key, spec)

    def finished(self, timeout_s: float) -> Sequence[ReadAdapter]:
        """Returns what has been read since the last call, after waiting for the first one for so long."""
        results: list[ReadAdapter] = []
        while True:
            try:
                key, outcome = self._results.get(timeout=timeout_s) if timeout_s else self._results.get_nowait()
            except queue.Empty:
                return results
            timeout_s = 0.0
            if key not in self._reading:
                results.append(ReadAdapter(key, error="It was dropped meanwhile."))
                del outcome
                return_memory(self._device)
                continue
            self._reading.discard(key)
            if isinstance(outcome, str):
                results.append(ReadAdapter(key, error=outcome))
            else:
                self._held[key] = outcome
                results.append(ReadAdapter(key, outcome.num_bytes))

    def drop(self, key: AdapterKey) -> None:
        """Gives the memory of an adapter back, also that of one which is still being read."""
        self._reading.discard(key)
        for slot in [slot for slot, placed in self._placed.items() if placed == key]:
            self._clear(slot)
        if self._held.pop(key, None) is not None:
            return_memory(self._device)

    def fill_slots(self, changes: Mapping[int, AdapterKey]) -> None:
        """Puts adapters from host memory into slots."""
        for slot, key in changes.items():
            if slot in self._placed:
                self._clear(slot)
            adapter = self._held[key]
            for index, packed in adapter.layers.items():
                self._layers[index].set(slot, packed)
            if adapter.ends is not None:
                self.ends[slot] = adapter.ends
            self._placed[slot] = key

    def _clear(self, slot: int) -> None:
        for index in self._held[self._placed.pop(slot)].layers:
            self._layers[index].set(slot, None)
        self.ends.pop(slot, None)

    @torch.inference_mode()
    def _read(self, key: AdapterKey, spec: AdapterSpec) -> None:
        """Runs in the thread."""
        try:
            self._results.put((key, self._read_files(spec)))
        except AdapterError as error:
            self._results.put((key, str(error)))
        except Exception as error:  # whatever it is, the engine goes on
            logger.exception("Reading adapter %s failed.", spec.name)
            self._results.put((key, f"Reading adapter {spec.name} failed: {error}"))

    def _read_files(self, spec: AdapterSpec) -> HostAdapter:
        files = self._inspect(spec)
        weights = self._reader.read_layers(files)
        ends = self._reader.read_ends(files)
        packed = dict(zip(weights, self._kernels.pack_adapter(list(weights.values())), strict=True))
        self._inspect(spec)  # written while they were read?
        return HostAdapter(packed, ends)

    def _inspect(self, spec: AdapterSpec) -> AdapterFiles:
        """Looks at the files; raises AdapterError if they are not those that the adapter was loaded from."""
        files = inspect_adapter(
            Path(spec.path),
            self._config.model.spec,
            max_rank=self._lora.max_lora_rank,
            form=cast("AdapterFormat", spec.format),
            allows_pickle=self._lora.allows_pickle,
        )
        if files.fingerprint != spec.fingerprint:
            raise AdapterError(
                f"The files of adapter {spec.name} in {spec.path} have changed since it was loaded; load it again."
            )
        return files


def share_one_arena() -> None:
    """Lets new threads allocate where the main thread does; the end of an arena of their own is never given back."""
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:
        set_option(_M_ARENA_MAX, 1)


def return_memory(device: torch.device) -> None:
    """Gives freed memory back to the system, where PyTorch or the C library keeps some."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)
