"""`RequestsInFlight`: open requests and adapters of a native client as the supervisor of its cores sees them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from vllm_mxext.engine.frontend.output_processor import OutputProcessor, ProcessedStep
from vllm_mxext.engine.lora_registry import LoRARegistry
from vllm_mxext.errors import EngineDeadError, GenerationError
from vllm_mxext.logger import init_logger
from vllm_mxext.native.core_messages import AdapterSpec, CoreInfo
from vllm_mxext.native.protocol import AdapterUse, EngineCoreOutputs, EngineCoreRequest
from vllm_mxext.observability.stats import StatsRecorder

logger = init_logger(__name__)


class RequestsInFlight:
    """What the supervisor sees of the client's requests, and tells them of cores that come and go.

    Args:
        outputs: the open requests.
        adapters: what they may name.
        end: called with everything that ended requests.
        recorder: told about the KV cache.
    """

    def __init__(
        self,
        outputs: OutputProcessor,
        adapters: LoRARegistry,
        end: Callable[[ProcessedStep], None],
        recorder: StatsRecorder,
    ) -> None:
        self._outputs = outputs
        self._adapters = adapters
        self._end = end
        self._recorder = recorder
        self._is_cache_recorded = False

    def open_core_requests(self) -> list[EngineCoreRequest]:
        """Every open request as it goes on where it stands, oldest first."""
        return self._outputs.open_core_requests()

    def take_outputs(self, outputs: EngineCoreOutputs) -> None:
        """Takes what one engine step brought."""
        if outputs.stats is not None and outputs.stats.adapters is not None:
            self._adapters.update(outputs.stats.adapters)
        self._end(self._outputs.process(outputs))

    def known_adapters(self) -> list[AdapterSpec]:
        """Every adapter that requests may name, or that open ones do."""
        return self._adapters.specs

    def take_adapter_uses(self, uses: Sequence[AdapterUse]) -> None:
        """Takes how all adapters stand."""
        self._adapters.update(uses)

    def core_ready(self, info: CoreInfo) -> None:
        """Hears what the new core is like; the first one's KV cache is recorded."""
        if self._is_cache_recorded:
            if not info.is_batch_invariant:
                logger.warning(
                    "Streams continue on the %s kernels, which are not batch-invariant: they may go on with other "
                    "tokens than an undisturbed run would have.",
                    info.kernels,
                )
        else:
            self._is_cache_recorded = True
            self._recorder.record_cache_config({"block_size": info.block_size, "num_gpu_blocks": info.num_blocks})

    def core_died(self) -> None:
        """Hears that the core died and that the open requests go to the next one."""
        self._outputs.count_restart()
        self._adapters.update(())

    def convict(self, core_request_id: str, reason: str) -> None:
        """Ends a request that kills the core."""
        self._end(self._outputs.fail(core_request_id, GenerationError(reason)))

    def engine_lost(self, reason: str) -> None:
        """Ends every open request: there will be no other core."""
        for request in self._outputs.open_core_requests():
            self._end(self._outputs.fail(request.request_id, EngineDeadError(reason)))
