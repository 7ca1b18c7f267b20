"""`LoRARequests`: the adapters that a program calls by numbers of its own, as vLLM's programs do."""

from __future__ import annotations

from vllm_mxext.engine.client import AdapterSource
from vllm_mxext.errors import AdapterConflictError
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import LoRARequest


class LoRARequests:
    """What each number and name stands for, so that an adapter is loaded on its first use only."""

    def __init__(self) -> None:
        self._by_id: dict[int, LoRARequest] = {}
        self._by_name: dict[str, LoRARequest] = {}

    @property
    def ids(self) -> set[int]:
        """Numbers of the loaded adapters."""
        return set(self._by_id)

    def is_loaded(self, request: LoRARequest) -> bool:
        """Whether a request can be served as it is; otherwise its adapter is to be loaded, and `add()` be told.

        Raises:
            AdapterConflictError: its number or its name stands for another adapter.
        """
        for key, known in (
            (f"lora_int_id {request.lora_int_id}", self._by_id.get(request.lora_int_id)),
            (f"lora_name '{request.lora_name}'", self._by_name.get(request.lora_name)),
        ):
            if known is not None and (
                (known.lora_int_id, known.lora_name) != (request.lora_int_id, request.lora_name)
                or (known.lora_path != request.lora_path and not request.load_inplace)
            ):
                raise AdapterConflictError(
                    f"{key} stands for the adapter '{known.lora_name}' (number {known.lora_int_id}) at "
                    f"'{known.lora_path}'; use other ones, or load_inplace=True to give it another path.",
                    param="lora_request",
                )
        return request.lora_int_id in self._by_id and not request.load_inplace

    def add(self, request: LoRARequest) -> None:
        """Notes that the adapter of a request is loaded."""
        self._by_id[request.lora_int_id] = self._by_name[request.lora_name] = request

    def get(self, lora_id: int) -> LoRARequest | None:
        """Returns what a number stands for."""
        return self._by_id.get(lora_id)

    def named(self, name: str) -> LoRARequest | None:
        """Returns what a name stands for."""
        return self._by_name.get(name)

    def remove(self, request: LoRARequest) -> None:
        """Notes that the adapter of a request is unloaded."""
        del self._by_id[request.lora_int_id], self._by_name[request.lora_name]


def source_of(request: LoRARequest) -> AdapterSource:
    """Returns what is to be loaded for a request."""
    return AdapterSource(request.lora_name, request.lora_path, base_model_name=request.base_model_name)


def name_in(output: RequestOutput, request: LoRARequest) -> None:
    """Names the adapter of a request in its output."""
    output.lora_request = request
    for sample in output.outputs:
        sample.lora_request = request
