"""Logits processors of the user's: the interface of a plug-in, and how plug-ins are found.

A plug-in changes the logits of the requests it takes part in:

    class OnlyDigits(LogitsProcessor):
        @classmethod
        def validate_params(cls, params):
            if not isinstance((params.extra_args or {}).get("only_digits", False), bool):
                raise ValueError("only_digits must be true or false.")

        def new_req_logits_processor(self, params):
            if not (params.extra_args or {}).get("only_digits"):
                return None

            def process(output_token_ids, logits):
                logits[~DIGITS] = float("-inf")
                return logits

            return process

It is the form of vLLM's `AdapterLogitsProcessor`, one request at a time: an exception then fails its own request only.
vLLM's other form, which changes a batch at once and is told of moves within it, is refused with this reason.
"""

from __future__ import annotations

import importlib
import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from vllm_mxext.errors import ConfigError, InvalidRequestError
from vllm_mxext.logger import init_logger
from vllm_mxext.sampling_params import SamplingParams

if TYPE_CHECKING:
    import torch

logger = init_logger(__name__)

ENTRY_POINTS = "vllm_mxext.logits_processors"
"""Entry point group of installed plug-ins; one that cannot be used keeps the engine from starting."""

VLLM_ENTRY_POINTS = "vllm.logits_processors"
"""vLLM's group; a plug-in there that needs vLLM itself, or changes whole batches, is left out with a warning."""

RequestLogitsProcessor = Callable[..., "torch.Tensor"]
"""`(output ids, logits)` or `(prompt ids, output ids, logits)` -> logits.

The logits are `[vocab_size]` float32 on the CPU, and may be changed in place. It is called for every token, and after
preemption, speculation or a restart may see earlier tokens again: its answer must depend on its arguments only.
"""


class LogitsProcessor(ABC):
    """A plug-in. `vllm_config` is None here, `device` the CPU and `is_pin_memory` False."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:  # noqa: B027 - optional
        """Called once, in the engine process."""

    @classmethod  # noqa: B027 - optional
    def validate_params(cls, params: SamplingParams) -> None:
        """Refuses parameters by raising `ValueError`, before the request is admitted; runs in the front process."""

    def is_argmax_invariant(self) -> bool:
        """Whether the most likely token never changes, so that greedy requests need not be processed."""
        return False

    @abstractmethod
    def new_req_logits_processor(self, params: SamplingParams) -> RequestLogitsProcessor | None:
        """Returns what processes a request's logits, or None for a request that is not concerned."""


ProcessorClass = type[Any]
"""`LogitsProcessor`, or a class with the same methods."""


def load_logits_processors(names: Iterable[str]) -> tuple[ProcessorClass, ...]:
    """Returns the installed plug-ins, and those that `--logits-processors` names as `module:Class`.

    Raises:
        ConfigError: one cannot be imported, or does not have the methods of `LogitsProcessor`.
    """
    wanted = [entry.load() for entry in _entries(ENTRY_POINTS)]
    tried = [entry.try_load() for entry in _entries(VLLM_ENTRY_POINTS)]
    named = [_Plugin(f"--logits-processors {name}", name).load() for name in names]
    return tuple(dict.fromkeys([*wanted, *(found for found in tried if found is not None), *named]))


def check_params(processors: Iterable[ProcessorClass], params: SamplingParams) -> None:
    """Lets every plug-in see a request's parameters.

    Raises:
        InvalidRequestError: one refuses them, or there is none to read `extra_args`.
    """
    processors = tuple(processors)
    if params.extra_args and not processors:
        raise InvalidRequestError(
            "extra_args (vllm_xargs) are for logits processors, and none is loaded; start with --logits-processors, or "
            "leave them out.",
            param="vllm_xargs",
        )
    for processor in processors:
        _validate(processor, params)


def _validate(processor: ProcessorClass, params: SamplingParams) -> None:
    try:
        processor.validate_params(params)
    except Exception as error:  # the code is the user's, it can raise anything
        raise InvalidRequestError(f"{processor.__name__}: {error}", param="vllm_xargs") from error


class _Plugin:
    """Where a plug-in is said to be."""

    def __init__(self, origin: str, name: str) -> None:
        self._origin = origin
        self._name = name

    def try_load(self) -> ProcessorClass | None:
        try:
            return self.load()
        except ConfigError as error:
            logger.warning("%s It is left out.", error)
            return None

    def load(self) -> ProcessorClass:
        module, _, path = self._name.partition(":")
        if not path:
            raise ConfigError(f"{self._origin} is not of the form module:Class.")
        try:
            found: Any = importlib.import_module(module)
            for attribute in path.split("."):
                found = getattr(found, attribute)
        except Exception as error:  # the code is the user's, it can raise anything
            raise ConfigError(
                f"{self._origin} cannot be imported ({type(error).__name__}: {error}); repair or remove it."
            ) from error
        if not isinstance(found, type) or not hasattr(found, "new_req_logits_processor"):
            raise ConfigError(
                f"{self._origin} has no method new_req_logits_processor; processors of whole batches are not taken, as "
                "one request could fail the others: write it as a vllm_mxext.LogitsProcessor."
            )
        return found


def _entries(group: str) -> list[_Plugin]:
    return [
        _Plugin(f"The entry point {entry.name} of {group}", entry.value)
        for entry in importlib.metadata.entry_points(group=group)
    ]
