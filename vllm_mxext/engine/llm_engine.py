"""`LLMEngine`: the native engine in this process, one step per call."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Iterable, Sequence
from typing import Any, Protocol

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.config.frontend import StructuredOutputsConfig
from vllm_mxext.engine.adapter_files import InspectFiles, make_inspection
from vllm_mxext.engine.client import AdapterInfo
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.engine.frontend.beam_search import BeamSearch
from vllm_mxext.engine.frontend.grammars import make_grammar_admission
from vllm_mxext.engine.frontend.input_processor import InputProcessor, ProcessedRequest
from vllm_mxext.engine.frontend.output_processor import OutputProcessor, ProcessedStep
from vllm_mxext.engine.frontend.thinking_rules import find_reasoning_format
from vllm_mxext.engine.inproc_adapters import AdapterCore, InprocAdapters
from vllm_mxext.engine.lora_registry import LoRARegistry
from vllm_mxext.engine.prompts import PromptLike, parse_prompt
from vllm_mxext.errors import EngineDeadError, InvalidRequestError
from vllm_mxext.native.core_client import InprocCoreClient
from vllm_mxext.native.protocol import EngineCoreOutputs, EngineCoreRequest
from vllm_mxext.observability.stats import StatsRecorder
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.parsing.reasoning import ReasoningFormat
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, LoRARequest
from vllm_mxext.sampling_params import SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer


class SteppedCore(AdapterCore, Protocol):
    """An engine core that its owner steps."""

    @property
    def has_work(self) -> bool:
        """Whether `step()` has something to do."""
        ...

    def add_requests(self, requests: Sequence[EngineCoreRequest]) -> None:
        """Queues requests, in this order."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stops work on requests; unknown ids are ignored."""
        ...

    def step(self) -> EngineCoreOutputs:
        """Runs one engine step."""
        ...

    def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks, so that later requests find nothing computed before; False if that was refused."""
        ...


class LLMEngine:
    """Synchronous engine: add requests, call `step()` until none is unfinished.

    Requests without a seed get one from `ModelConfig.seed`, so a program gives the same outputs on every run.

    Args:
        config: the engine.
        core: the engine core; loaded in this process by default.
        tokenizer: the model's tokenizer; loaded by default.
        structured_outputs: rules for structured JSON.
        recorder: told about steps, tokens and ends.
        reasoning: how the model marks its reasoning, for `thinking_token_budget`.
        inspect: looks at an adapter's files; by default for the model of the engine.

    Raises:
        ConfigError: the engine cannot be loaded as configured.
    """

    def __init__(
        self,
        config: EngineConfig,
        *,
        core: SteppedCore | None = None,
        tokenizer: Tokenizer | None = None,
        structured_outputs: StructuredOutputsConfig | None = None,
        recorder: StatsRecorder | None = None,
        reasoning: ReasoningFormat | None = None,
        inspect: InspectFiles | None = None,
    ) -> None:
        self._tokenizer = tokenizer or load_tokenizer(config.model.tokenizer_path)
        seeds = random.Random(config.model.seed)
        rules = structured_outputs or StructuredOutputsConfig()
        self._grammars = make_grammar_admission(config, self._tokenizer, rules)
        self._input = InputProcessor(config, self._tokenizer, lambda: seeds.getrandbits(64), self._grammars, reasoning)
        self._outputs = OutputProcessor(self._tokenizer, recorder=recorder)
        self._core: SteppedCore | None = core or InprocCoreClient(config)
        self._adapters = InprocAdapters(
            LoRARegistry(config.model.served_model_names),
            self._require_core,
            inspect or make_inspection(config),
            is_on=config.lora is not None,
        )

    @classmethod
    def from_engine_args(cls, engine_args: EngineArgs | None = None, **arguments: Any) -> LLMEngine:
        """Loads an engine from `EngineArgs` or the same arguments by name.

        Raises:
            ConfigError: an argument is unknown or wrong, or the engine cannot be loaded.
        """
        given = {} if engine_args is None else engine_args.arguments
        resolved = EngineArgs(**{**given, **arguments}).resolve()
        tokenizer = load_tokenizer(resolved.engine.model.tokenizer_path, resolved.frontend.templates)
        return cls(
            resolved.engine,
            tokenizer=tokenizer,
            structured_outputs=resolved.frontend.structured_outputs,
            reasoning=find_reasoning_format(resolved.frontend, tokenizer),
        )

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer with its chat template."""
        return self._tokenizer

    def get_tokenizer(self) -> Tokenizer:
        """Returns the model's tokenizer."""
        return self._tokenizer

    def add_request(
        self,
        request_id: str,
        prompt: PromptLike,
        params: SamplingParams,
        *,
        lora_request: LoRARequest | None = None,
        priority: int = 0,
        cache_salt: str | None = None,
        timeout_s: float | None = None,
    ) -> None:
        """Queues a request; its adapter is loaded if it was not used before.

        Raises:
            InvalidRequestError: it cannot be served as it is, its adapter cannot be loaded, or its id is in use.
        """
        parsed, adapter = parse_prompt(prompt), self.use_lora(lora_request)
        request = GenerateRequest(request_id, parsed, params, priority, cache_salt, timeout_s, adapter=adapter)
        self.add_requests([request])

    def use_lora(self, lora_request: LoRARequest | None) -> str | None:
        """Loads an adapter if it is not loaded as it is wanted; returns the name by which requests call it.

        Raises:
            AdapterConflictError: its number or name stands for another adapter.
            AdapterError: it cannot be loaded.
            UnsupportedFeatureError: the engine serves no adapters.
        """
        self._require_core()
        return self._adapters.use(lora_request)

    def add_lora(self, lora_request: LoRARequest) -> bool:
        """Loads an adapter ahead of its first use; False if it is loaded already.

        Raises:
            AdapterConflictError: its number or name stands for another adapter.
            AdapterError: it cannot be loaded.
            UnsupportedFeatureError: the engine serves no adapters.
        """
        is_loaded = self._adapters.requests.is_loaded(lora_request)
        self.use_lora(lora_request)
        return not is_loaded

    def remove_lora(self, lora_id: int) -> bool:
        """Unloads an adapter; open requests go on with it. False if there is none of this number."""
        self._require_core()
        return self._adapters.remove(lora_id)

    def list_loras(self) -> set[int]:
        """Returns the numbers of the loaded adapters."""
        return self._adapters.requests.ids

    def pin_lora(self, lora_id: int) -> bool:
        """Keeps an adapter in memory; False if there is none of this number."""
        self._require_core()
        return self._adapters.pin(lora_id)

    @property
    def adapters(self) -> tuple[AdapterInfo, ...]:
        """The loaded adapters and how they stand."""
        return self._adapters.infos

    def add_requests(self, requests: Iterable[GenerateRequest]) -> None:
        """Queues requests, or none of them if one cannot be served.

        Raises:
            InvalidRequestError: one cannot be served as it is, or its id is in use.
        """
        self._require_core()
        processed: list[ProcessedRequest] = []
        seen: set[str] = set()
        with contextlib.ExitStack() as on_refusal:
            for request in requests:
                request_id = request.request_id
                if request_id in seen or self._outputs.has_request(request_id):
                    message = f"Request id '{request_id}' is in use; choose another."
                    raise InvalidRequestError(message, param="request_id")
                seen.add(request_id)
                adapter = self._adapters.lend(request.adapter)
                on_refusal.callback(self._adapters.take_back, adapter)
                processed.append(self._input.process(request, time.monotonic(), adapter))
            on_refusal.pop_all()
        self._add(processed)

    def begin_beam_search(self, request: BeamSearchRequest) -> BeamSearch:
        """Tokenizes and checks a beam search; `add_steps()` queues its steps, and `end_beam_search()` ends it.

        Raises:
            InvalidRequestError: it cannot be served as it is.
        """
        with contextlib.ExitStack() as on_refusal:
            adapter = self._adapters.lend(request.adapter)
            on_refusal.callback(self._adapters.take_back, adapter)
            search = BeamSearch.begin(request, self._input, time.monotonic(), adapter)
            on_refusal.pop_all()
        return search

    def end_beam_search(self, search: BeamSearch) -> None:
        """Lets go of a search; none of its steps may be open."""
        self._adapters.take_back(search.processed.adapter)

    def add_steps(self, search: BeamSearch) -> list[str]:
        """Queues the next step of a beam search and returns the ids of its requests, whose outputs it takes."""
        steps = search.next_steps()
        self._add(steps)
        return [step.request.request_id for step in steps]

    def step(self) -> list[RequestOutput]:
        """Runs one engine step and returns what is new, in the form each request asked for.

        A request that failed in the engine ends with finish reason `error`; one without output when its time is over,
        with `abort`.
        """
        core = self._require_core()
        expired = self._collect(self._outputs.expire())
        if not core.has_work:
            return expired
        outputs = core.step()
        self._adapters.update(None if outputs.stats is None else outputs.stats.adapters)
        return expired + self._collect(self._outputs.process(outputs))

    def abort_request(self, request_ids: str | Iterable[str]) -> list[RequestOutput]:
        """Ends requests with finish reason `abort` and returns their last outputs; unknown ids are ignored."""
        ids = [request_ids] if isinstance(request_ids, str) else list(request_ids)
        return self._collect(self._outputs.abort(ids))

    def has_unfinished_requests(self) -> bool:
        """Whether `step()` has something to do for an open request."""
        return self._outputs.num_requests > 0

    def get_num_unfinished_requests(self) -> int:
        """Number of open requests."""
        return self._outputs.num_requests

    def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks, so that later requests find nothing computed before; False if that was refused."""
        return self._require_core().reset_prefix_cache()

    def close(self) -> None:
        """Aborts open requests and releases the model; may be called again."""
        if self._core is not None:
            self.abort_request(self._outputs.request_ids)
            self._core = None
        self._grammars.close()

    def _add(self, processed: Iterable[ProcessedRequest]) -> None:
        core = self._require_core()
        for entry in processed:
            self._outputs.add(entry)
            core.add_requests(entry.samples)

    def _collect(self, step: ProcessedStep) -> list[RequestOutput]:
        if step.abort_ids:
            self._require_core().abort(step.abort_ids)
        outputs: list[RequestOutput] = []
        for state in step.changed:
            if state.is_finished and not state.processed.is_step:
                self._adapters.take_back(state.processed.adapter)
            output = state.take_output()
            if output is not None:
                self._adapters.name_in(output, state.processed.request.adapter)
                outputs.append(output)
        return outputs

    def _require_core(self) -> SteppedCore:
        if self._core is None:
            raise EngineDeadError("This engine has been closed; make a new one.")
        return self._core
