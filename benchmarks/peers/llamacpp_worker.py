"""Serves a benchmark with llama.cpp's batch interface: every step decodes one token of every sequence together.

The model is what `make_gguf.py` wrote. The context is made to measure for each task, before its time starts: a larger
one makes llama.cpp slower. Each sequence has keys of its own (`kv_unified` off), since in shared ones every token goes
through the keys of all sequences; only a common beginning of the prompts is worth that.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterable, Sequence
from typing import Any

import llama_cpp
import numpy as np
from protocol import Engine, Prompts, serve

_PADDING = 256
"""llama.cpp rounds the length of a sequence up to this."""


class LlamaCpp:
    """A model, and a context that suits the task at hand.

    Args:
        settings: as the protocol describes them; options are `n_ubatch`, `flash_attn` and `kv_unified` (None: where the
            prompts have a common beginning).
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        self._model = llama_cpp.llama_model_load_from_file(settings["model"].encode(), params)
        if not self._model:
            raise SystemExit(f"llama.cpp cannot load {settings['model']}.")
        self._vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self._model))
        self._settings = settings
        self._shape: tuple[int, int, bool] | None = None
        self._context: Any = None
        self._batch: Any = None
        self._num_tokens = 0

    def prepare(self, prompts: Prompts, output_len: int) -> None:
        """Makes a context for sequences of this number and length, unless there is one."""
        shared, length = self._shared_len(prompts), len(prompts[0]) + output_len
        unified = self._settings.get("kv_unified")
        if unified is None:
            unified = shared > 0
        if unified:
            length -= shared - -(-shared // len(prompts))  # the common beginning is kept once
        length = -(-length // _PADDING) * _PADDING
        shape = (len(prompts), length, unified)
        if shape != self._shape:
            self._make_context(shape)

    def generate(self, prompts: Prompts, output_len: int) -> list[list[int]]:
        """Prompts first, a common beginning once; then a token of every sequence per step."""
        llama_cpp.llama_memory_clear(self._memory, False)
        shared = self._shared_len(prompts)
        sequences = list(range(len(prompts)))
        if shared:
            self._feed([(0, position, prompts[0][position], False) for position in range(shared)])
            for sequence in sequences[1:]:
                llama_cpp.llama_memory_seq_cp(self._memory, 0, sequence, -1, -1)
        last = len(prompts[0]) - 1
        rows = [(s, p, prompts[s][p], p == last) for s in sequences for p in range(shared, last + 1)]
        tokens = [self._feed(rows)]
        for step in range(1, output_len):
            tokens.append(self._feed([(s, last + step, tokens[-1][s], True) for s in sequences]))
        return [list(column) for column in zip(*tokens, strict=True)]

    def logits(self, prompt: Sequence[int]) -> Iterable[float]:
        """The logits after one prompt."""
        self.prepare([prompt], 1)
        self.generate([prompt], 1)
        return [float(value) for value in self._logits(1)[0]]

    def _feed(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Decodes (sequence, position, token, whether it is followed by a new one); returns the new tokens in order."""
        new: list[int] = []
        for start in range(0, len(rows), self._batch_size):
            part = rows[start : start + self._batch_size]
            sequence, position, token, wanted = (np.array(column) for column in zip(*part, strict=True))
            count = len(part)
            self._tokens[:count], self._positions[:count], self._wanted[:count] = token, position, wanted
            for index in range(count):
                self._batch.seq_id[index][0] = sequence[index]
            self._batch.n_tokens = count
            if llama_cpp.llama_decode(self._context, self._batch) != 0:
                raise RuntimeError("llama_decode failed.")
            if num_wanted := int(wanted.sum()):
                new += self._logits(num_wanted).argmax(axis=1).tolist()
        return new

    def _logits(self, count: int) -> np.ndarray:
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits(self._context), shape=(count, self._vocab_size))

    def _shared_len(self, prompts: Prompts) -> int:
        """Tokens at the beginning that all prompts have in common, if prefix caching is on; one token each is left."""
        if not self._settings["enable_prefix_caching"] or len(prompts) == 1:
            return 0
        columns = enumerate(zip(*prompts, strict=True))
        differing = next((index for index, column in columns if len(set(column)) > 1), len(prompts[0]))
        return min(differing, len(prompts[0]) - 1)

    def _make_context(self, shape: tuple[int, int, bool]) -> None:
        if self._context is not None:
            llama_cpp.llama_batch_free(self._batch)
            llama_cpp.llama_free(self._context)
        num_sequences, length, unified = shape
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = num_sequences * length
        params.n_seq_max = num_sequences
        params.n_ubatch = self._settings.get("n_ubatch", 512)
        params.n_batch = max(2048, params.n_ubatch)
        params.n_threads = params.n_threads_batch = self._settings["num_threads"]
        params.flash_attn_type = self._settings.get("flash_attn", llama_cpp.LLAMA_FLASH_ATTN_TYPE_AUTO)
        params.kv_unified = unified
        params.no_perf = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        if not self._context:
            raise RuntimeError(f"llama.cpp cannot make a context for {num_sequences} sequences of {length} tokens.")
        self._memory = llama_cpp.llama_get_memory(self._context)
        self._batch_size = int(params.n_batch)
        self._batch = llama_cpp.llama_batch_init(self._batch_size, 0, 1)
        size = (self._batch_size,)
        self._tokens = np.ctypeslib.as_array(self._batch.token, shape=size)
        self._positions = np.ctypeslib.as_array(self._batch.pos, shape=size)
        self._wanted = np.ctypeslib.as_array(ctypes.cast(self._batch.logits, ctypes.POINTER(ctypes.c_int8)), shape=size)
        np.ctypeslib.as_array(self._batch.n_seq_id, shape=size)[:] = 1
        self._shape = shape


def load(settings: dict[str, Any]) -> Engine:
    """Loads the model."""
    engine = LlamaCpp(settings)
    return Engine(engine.generate, engine.prepare, engine.logits)


if __name__ == "__main__":
    serve(load)
