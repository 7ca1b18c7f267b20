"""`LLM`: offline generation with the engine in this process."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any

from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.config.frontend import ContentFormatName
from vllm_mxext.engine.beam_searching import beam_sequences, run_beam_searches
from vllm_mxext.engine.client import ModelInfo
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.engine.frontend.thinking_rules import find_reasoning_format
from vllm_mxext.engine.interrupts import DeferredInterrupt
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.engine.model_info import model_info
from vllm_mxext.engine.prompts import PromptLike, parse_prompts, per_prompt, with_tokenization
from vllm_mxext.engine.refused_arguments import refuse_arguments
from vllm_mxext.entrypoints.conversations import Conversation, render_conversations
from vllm_mxext.entrypoints.fit import FitReport, fit_report
from vllm_mxext.entrypoints.progress_bar import ProgressBar
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.observability.metrics import PrometheusMetrics
from vllm_mxext.observability.reading import Metric, read_metrics
from vllm_mxext.outputs import BeamSearchOutput, RequestOutput
from vllm_mxext.requests import BeamSearchRequest, GenerateRequest, LoRARequest, Prompt, TextPrompt, TokensPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer

LoRAs = LoRARequest | Sequence[LoRARequest | None] | None
"""An adapter for all prompts, or one or None for each."""


class LLM:
    """Generates text for lists of prompts.

    >>> with LLM() as llm:
    ...     outputs = llm.generate(["2 + 2 ="], SamplingParams(temperature=0.0, max_tokens=8))

    Args:
        model: folder of a checkpoint in Hugging Face layout; the built-in model by default.
        **engine_args: `tokenizer`, `dtype`, `max_model_len`, `seed`, `gpu_memory_utilization`, ... named as the flags
            of `mxext serve`, with underscores.

    Raises:
        ConfigError: an argument is unknown or wrong, or the model does not fit.
    """

    def __init__(self, model: str | Path | None = None, **engine_args: Any) -> None:
        config = EngineArgs(model=None if model is None else str(model), **engine_args).resolve()
        tokenizer = load_tokenizer(config.engine.model.tokenizer_path, config.frontend.templates)
        self._config = config
        self._metrics = PrometheusMetrics(config.engine.model.served_model_names[0], config.engine.model.max_model_len)
        self._engine = LLMEngine(
            config.engine,
            tokenizer=tokenizer,
            structured_outputs=config.frontend.structured_outputs,
            recorder=self._metrics,
            reasoning=find_reasoning_format(config.frontend, tokenizer),
        )
        self._model = model_info(config.engine, config.frontend)
        self._num_requests = 0

    @property
    def engine(self) -> LLMEngine:
        """The engine underneath."""
        return self._engine

    @property
    def model(self) -> ModelInfo:
        """The loaded model."""
        return self._model

    def get_tokenizer(self) -> Tokenizer:
        """Returns the model's tokenizer."""
        return self._engine.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Returns what is used when no sampling parameters are given: the defaults of the model's authors."""
        return SamplingParams.from_optional(**{"max_tokens": 16, **self._model.default_sampling})

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        priority: Sequence[int] | None = None,
        tokenization_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Generates for one or several prompts and returns their outputs in order.

        A request that fails in the engine has finish reason `error`, and the log names it.

        Args:
            prompts: texts, lists of token ids, or dictionaries with `prompt` or `prompt_token_ids`, and `cache_salt`.
            sampling_params: for all prompts, or one per prompt.
            use_tqdm: show a progress bar.
            lora_request: the adapter for all prompts, or one or None per prompt; loaded on its first use.
            priority: one number per prompt, lower first; needs `scheduling_policy="priority"`.
            tokenization_kwargs: `add_special_tokens` for prompts that are texts.

        Raises:
            InvalidRequestError: a prompt or parameter cannot be served; nothing has been generated then.
        """
        given = with_tokenization(parse_prompts(prompts), tokenization_kwargs)
        return self._run(given, sampling_params, use_tqdm, priority, lora_request)

    def stream(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        lora_request: LoRAs = None,
        priority: Sequence[int] | None = None,
    ) -> Iterator[RequestOutput]:
        """Yields what is new of each prompt as it is generated; `request_id` is the prompt's position.

        Leaving the loop aborts what has not finished. Until then this object serves nothing else. Ctrl-C waits for the
        end of an engine step.

        Args:
            prompts: as for `generate()`.
            sampling_params: for all prompts, or one per prompt.
            lora_request: as for `generate()`.
            priority: one number per prompt.

        Raises:
            InvalidRequestError: a prompt or parameter cannot be served; nothing has been generated then. What only
                the engine can see is raised with the first item.
        """
        given = parse_prompts(prompts)
        return self._stream(self._make_requests(given, sampling_params, priority, lora_request, OutputKind.DELTA))

    def beam_search(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        params: BeamSearchParams,
        *,
        lora_request: LoRAs = None,
        use_tqdm: bool = False,
        concurrency_limit: int | None = None,
    ) -> list[BeamSearchOutput]:
        """Searches the likeliest continuations of one or several prompts and returns them in order of the prompts.

        Args:
            prompts: as for `generate()`.
            params: of all searches.
            lora_request: the adapter for all prompts, or one or None per prompt; loaded on its first use.
            use_tqdm: show a progress bar.
            concurrency_limit: searches at once; None = all.

        Raises:
            InvalidRequestError: a prompt or parameter cannot be served; nothing has been computed then.
        """
        self._check_idle()
        given = parse_prompts(prompts)
        loras = per_prompt("lora_request", lora_request, len(given))
        adapters = self._load(loras)
        requests = [
            BeamSearchRequest(self._next_id(), prompt, params, adapter=adapter)
            for prompt, adapter in zip(given, adapters, strict=True)
        ]
        with ProgressBar(len(requests), use_tqdm) as bar, DeferredInterrupt() as interrupt:
            outputs = run_beam_searches(self._engine, requests, concurrency_limit, interrupt.check, bar.count)
        tokenizer = self._engine.tokenizer
        return [beam_sequences(output, tokenizer, lora) for output, lora in zip(outputs, loras, strict=True)]

    def chat(  # noqa: PLR0913 - the arguments of vLLM
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        lora_request: LoRAs = None,
        chat_template: str | None = None,
        chat_template_content_format: ContentFormatName | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answers one or several conversations.

        Args:
            messages: one conversation, or a list of them.
            sampling_params: for all conversations, or one per conversation.
            use_tqdm: show a progress bar.
            lora_request: the adapter for all prompts, or one or None per prompt; loaded on its first use.
            chat_template: template text instead of the model's, or the name of one of the model's.
            chat_template_content_format: form of content that the template gets; None is the engine argument's.
            add_generation_prompt: end the prompt with the beginning of an assistant message.
            continue_final_message: let the model go on with the last message; excludes `add_generation_prompt`.
            tools: tool descriptions that the template shows to the model.
            chat_template_kwargs: further variables of the template.

        Raises:
            InvalidRequestError: the template refused a conversation, or a parameter cannot be served.
            UnsupportedFeatureError: the model has no chat template and none was given.
        """
        prompts: list[Prompt] = [
            TextPrompt(text, add_special_tokens=False)
            for text in render_conversations(
                self._engine.tokenizer,
                messages,
                tools,
                chat_template_kwargs,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=continue_final_message,
                chat_template=chat_template,
                content_format=chat_template_content_format,
            )
        ]
        return self._run(prompts, sampling_params, use_tqdm, None, lora_request)

    def render(
        self,
        messages: Conversation | Sequence[Conversation],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
        **template: Any,
    ) -> list[TokensPrompt]:
        """Returns the prompts that `chat()` makes of one or several conversations, as text and token ids.

        Args:
            messages: one conversation, or a list of them.
            tools: tool descriptions that the template shows to the model.
            chat_template_kwargs: further variables of the template.
            **template: `chat_template`, `content_format`, `add_generation_prompt`, `continue_final_message`.

        Raises:
            InvalidRequestError: the template refused a conversation.
            UnsupportedFeatureError: the model has no chat template and none was given.
        """
        tokenizer = self._engine.tokenizer
        texts = render_conversations(tokenizer, messages, tools, chat_template_kwargs, **template)
        return [TokensPrompt(tuple(tokenizer.encode(text, add_special_tokens=False)), text) for text in texts]

    def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks; running requests keep theirs. Returns whether it was done."""
        return self._engine.reset_prefix_cache()

    def get_metrics(self) -> list[Metric]:
        """Returns the figures that a server shows at `/metrics`, for what this object has served."""
        return read_metrics(self._metrics.registry)

    def fit_report(self) -> FitReport:
        """Returns the memory plan as it would be made now, and which kernels compute and why."""
        return fit_report(self._config)

    def start_profile(self, profile_prefix: str | None = None) -> None:
        """Refuses: there is no profiler in this version.

        Raises:
            UnsupportedFeatureError: always.
        """
        refuse_arguments(profile_prefix=profile_prefix or "")

    def stop_profile(self) -> None:
        """Refuses, as `start_profile()`.

        Raises:
            UnsupportedFeatureError: always.
        """
        self.start_profile()

    def sleep(self, level: int = 1, mode: str = "abort") -> None:
        """Refuses: the memory of the weights is not given back while the engine lives.

        Raises:
            UnsupportedFeatureError: always.
        """
        del mode
        refuse_arguments(level=level)

    def wake_up(self, tags: Sequence[str] | None = None) -> None:
        """Refuses, as `sleep()`.

        Raises:
            UnsupportedFeatureError: always.
        """
        del tags
        self.sleep()

    def close(self) -> None:
        """Releases the model; may be called again."""
        self._engine.close()

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _run(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        use_tqdm: bool,
        priority: Sequence[int] | None,
        lora_request: LoRAs,
    ) -> list[RequestOutput]:
        """Serves all prompts; whatever is open when this is left is aborted."""
        requests = self._make_requests(prompts, params, priority, lora_request)
        self._engine.add_requests(requests)
        done: dict[str, RequestOutput] = {}
        with ProgressBar(len(requests), use_tqdm) as bar, DeferredInterrupt() as interrupt:
            try:
                while len(done) < len(requests):
                    interrupt.check()
                    for output in self._engine.step():
                        done[output.request_id] = output
                        bar.count(output)
            finally:
                self._engine.abort_request(request.request_id for request in requests)
        return [done[request.request_id] for request in requests]

    def _stream(self, requests: Sequence[GenerateRequest]) -> Iterator[RequestOutput]:
        self._check_idle()  # another stream may have begun since this one was asked for
        positions = {request.request_id: str(position) for position, request in enumerate(requests)}
        self._engine.add_requests(requests)
        with DeferredInterrupt() as interrupt:
            try:
                while self._engine.has_unfinished_requests():
                    interrupt.check()
                    for output in self._engine.step():
                        yield replace(output, request_id=positions[output.request_id])
            finally:
                self._engine.abort_request(positions)

    def _check_idle(self) -> None:
        if self._engine.has_unfinished_requests():
            raise InvalidRequestError("A stream of this LLM is open; read it to its end or close it first.")

    def _next_id(self) -> str:
        self._num_requests += 1
        return str(self._num_requests - 1)

    def _load(self, loras: Sequence[LoRARequest | None]) -> list[str | None]:
        """Loads the adapters that were not used before, each once, and returns their names."""
        given: Sequence[Any] = loras
        wrong = next((lora for lora in given if not isinstance(lora, LoRARequest | None)), None)
        if wrong is not None:
            message = f"lora_request must be a LoRARequest or a list of them, got {type(wrong).__name__}."
            raise InvalidRequestError(message, param="lora_request")
        names = {lora: self._engine.use_lora(lora) for lora in dict.fromkeys(loras)}
        return [names[lora] for lora in loras]

    def _make_requests(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
        lora_request: LoRAs,
        kind: OutputKind = OutputKind.FINAL_ONLY,
    ) -> list[GenerateRequest]:
        self._check_idle()
        params = self.get_default_sampling_params() if params is None else params
        all_params = per_prompt("sampling_params", params, len(prompts))
        priorities = per_prompt("priority", 0 if priority is None else priority, len(prompts))
        adapters = self._load(per_prompt("lora_request", lora_request, len(prompts)))
        return [
            GenerateRequest(
                self._next_id(), prompt, all_params[i].clone(output_kind=kind), priorities[i], adapter=adapters[i]
            )
            for i, prompt in enumerate(prompts)
        ]
