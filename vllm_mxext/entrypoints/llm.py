"""`LLM`: offline generation with the engine in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tqdm import tqdm

from vllm_mxext.engine.client import ModelInfo
from vllm_mxext.engine.engine_args import EngineArgs
from vllm_mxext.engine.interrupts import DeferredInterrupt
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.engine.model_info import model_info
from vllm_mxext.engine.prompts import PromptLike, parse_prompts
from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import GenerateRequest, Prompt, TextPrompt
from vllm_mxext.sampling_params import OutputKind, SamplingParams
from vllm_mxext.tokenizer.interface import Tokenizer
from vllm_mxext.tokenizer.loading import load_tokenizer

Conversation = Sequence[Mapping[str, Any]]
"""Messages with `role` and `content`, and whatever else the chat template reads."""


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
        self._engine = LLMEngine(
            config.engine, tokenizer=tokenizer, structured_outputs=config.frontend.structured_outputs
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
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Generates for one or several prompts and returns their outputs in order.

        A request that fails in the engine has finish reason `error`, and the log names it.

        Args:
            prompts: texts, lists of token ids, or dictionaries with `prompt` or `prompt_token_ids`.
            sampling_params: for all prompts, or one per prompt.
            use_tqdm: show a progress bar.
            priority: one number per prompt, lower first; needs `scheduling_policy="priority"`.

        Raises:
            InvalidRequestError: a prompt or parameter cannot be served; nothing has been generated then.
        """
        return self._run(parse_prompts(prompts), sampling_params, use_tqdm, priority)

    def chat(
        self,
        messages: Conversation | Sequence[Conversation],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        chat_template: str | None = None,
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
            chat_template: template text instead of the model's.
            add_generation_prompt: end the prompt with the beginning of an assistant message.
            continue_final_message: let the model go on with the last message; excludes `add_generation_prompt`.
            tools: tool descriptions that the template shows to the model.
            chat_template_kwargs: further variables of the template.

        Raises:
            InvalidRequestError: the template refused a conversation, or a parameter cannot be served.
            UnsupportedFeatureError: the model has no chat template and none was given.
        """
        conversations: Any = [messages] if _is_conversation(messages) else messages
        variables = {**({"tools": list(tools)} if tools else {}), **(chat_template_kwargs or {})}
        prompts: list[Prompt] = [
            TextPrompt(
                self._engine.tokenizer.apply_chat_template(
                    conversation,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=continue_final_message,
                    chat_template=chat_template,
                    template_kwargs=variables,
                ),
                add_special_tokens=False,
            )
            for conversation in conversations
        ]
        return self._run(prompts, sampling_params, use_tqdm)

    def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks; running requests keep theirs. Returns whether it was done."""
        return self._engine.reset_prefix_cache()

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
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """Serves all prompts; whatever is open when this is left is aborted."""
        requests = self._make_requests(prompts, params, priority)
        self._engine.add_requests(requests)
        done: dict[str, RequestOutput] = {}
        with _ProgressBar(len(requests), use_tqdm) as bar, DeferredInterrupt() as interrupt:
            try:
                while len(done) < len(requests):
                    interrupt.check()
                    for output in self._engine.step():
                        done[output.request_id] = output
                        bar.count(output)
            finally:
                self._engine.abort_request(request.request_id for request in requests)
        return [done[request.request_id] for request in requests]

    def _make_requests(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
        priority: Sequence[int] | None,
    ) -> list[GenerateRequest]:
        if params is None:
            params = self.get_default_sampling_params()
        all_params = [params] * len(prompts) if isinstance(params, SamplingParams) else list(params)
        priorities = [0] * len(prompts) if priority is None else list(priority)
        for name, values in (("sampling_params", all_params), ("priority", priorities)):
            if len(values) != len(prompts):
                raise InvalidRequestError(
                    f"{name} must have one entry per prompt: {len(values)} for {len(prompts)} prompts.", param=name
                )
        first = self._num_requests
        self._num_requests += len(prompts)
        return [
            GenerateRequest(
                str(first + i), prompt, all_params[i].clone(output_kind=OutputKind.FINAL_ONLY), priorities[i]
            )
            for i, prompt in enumerate(prompts)
        ]


class _ProgressBar:
    """A bar over finished requests with tokens per second."""

    def __init__(self, num_requests: int, is_shown: bool) -> None:
        self._bar = tqdm(total=num_requests, desc="Requests", unit="req", disable=not is_shown, dynamic_ncols=True)
        self._num_tokens = [0, 0]

    def __enter__(self) -> _ProgressBar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def count(self, output: RequestOutput) -> None:
        """Takes a finished request."""
        self._num_tokens[0] += len(output.prompt_token_ids)
        self._num_tokens[1] += sum(len(sample.token_ids) for sample in output.outputs)
        elapsed_s = self._bar.format_dict["elapsed"]
        if elapsed_s > 0:
            rates = (num_tokens / elapsed_s for num_tokens in self._num_tokens)
            self._bar.set_postfix_str("{:.0f} input tok/s, {:.0f} output tok/s".format(*rates), refresh=False)
        self._bar.update(1)


def _is_conversation(messages: Any) -> bool:
    return bool(messages) and isinstance(messages[0], Mapping)
