"""Runs plug-in logits processors, each request's by itself."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from vllm_mxext.errors import ConfigError
from vllm_mxext.logits_processors import ProcessorClass, RequestLogitsProcessor
from vllm_mxext.native.sampling.controls import LogitsProcessorError
from vllm_mxext.sampling_params import SamplingParams

_NUM_ARGUMENTS_WITH_PROMPT = 3


class RequestProcessors:
    """The processors of one request, in the order in which plug-ins were loaded.

    Args:
        processors: name of the plug-in and what it made for the request.
        prompt_token_ids: the request's prompt.
        failure: why one of them could not be made; then `apply()` raises.
    """

    def __init__(
        self,
        processors: Sequence[tuple[str, RequestLogitsProcessor]],
        prompt_token_ids: Sequence[int],
        failure: str | None = None,
    ) -> None:
        self._processors = [(name, process, _wants_prompt(process)) for name, process in processors]
        self._prompt_token_ids = list(prompt_token_ids)
        self._failure = failure

    def apply(self, row: npt.NDArray[np.float32], output_token_ids: npt.NDArray[Any]) -> None:
        """Changes a row of logits in place; the plug-ins see a copy.

        Raises:
            LogitsProcessorError: a plug-in failed, or returned something else than logits.
        """
        if self._failure is not None:
            raise LogitsProcessorError(self._failure)
        for name, process, wants_prompt in self._processors:
            arguments = [output_token_ids.tolist(), torch.from_numpy(row.copy())]
            try:
                result = process(self._prompt_token_ids.copy(), *arguments) if wants_prompt else process(*arguments)
                values = result.detach().to(device="cpu", dtype=torch.float32).numpy().reshape(row.shape)
            except Exception as error:  # the code is the user's, it can raise anything
                raise LogitsProcessorError(_failure(name, error)) from error
            if np.isnan(values).any() or not np.isfinite(values.max()):
                raise LogitsProcessorError(f"The logits processor {name} left no usable scores.")
            row[:] = values


class LogitsProcessors:
    """The plug-ins of an engine.

    Args:
        classes: what `load_logits_processors()` returned.

    Raises:
        ConfigError: one cannot be made.
    """

    def __init__(self, classes: Iterable[ProcessorClass]) -> None:
        self._plugins = [(kind.__name__, _make(kind)) for kind in classes]

    def for_request(self, params: SamplingParams, prompt_token_ids: Sequence[int]) -> RequestProcessors | None:
        """Returns the processors of a request; None if no plug-in takes part."""
        processors: list[tuple[str, RequestLogitsProcessor]] = []
        for name, plugin in self._plugins:
            try:
                skips = params.is_greedy and plugin.is_argmax_invariant()
                process = None if skips else plugin.new_req_logits_processor(params)
                if process is not None:
                    _wants_prompt(process)
            except Exception as error:  # the code is the user's, it can raise anything
                return RequestProcessors([], [], _failure(name, error))
            if process is not None:
                processors.append((name, process))
        return RequestProcessors(processors, prompt_token_ids) if processors else None


def _make(kind: ProcessorClass) -> Any:
    try:
        return kind(None, torch.device("cpu"), False)
    except Exception as error:  # the code is the user's, it can raise anything
        raise ConfigError(
            f"The logits processor {kind.__name__} cannot be made ({type(error).__name__}: {error}); repair or remove "
            "it."
        ) from error


def _wants_prompt(process: RequestLogitsProcessor) -> bool:
    return len(inspect.signature(process).parameters) == _NUM_ARGUMENTS_WITH_PROMPT


def _failure(name: str, error: Exception) -> str:
    return f"The logits processor {name} failed with {type(error).__name__}: {error}"
