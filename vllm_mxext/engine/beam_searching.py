"""Runs beam searches on an `LLMEngine`, several at a time."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vllm_mxext.engine.frontend.beam_search import BeamSearch
from vllm_mxext.engine.llm_engine import LLMEngine
from vllm_mxext.outputs import BeamSearchOutput, BeamSearchSequence, RequestOutput
from vllm_mxext.requests import BeamSearchRequest, LoRARequest
from vllm_mxext.tokenizer.interface import Tokenizer


@dataclass(slots=True)
class _Round:
    """One step of one search: its requests, and the outputs that have come."""

    search: BeamSearch
    step_ids: list[str]
    outputs: dict[str, RequestOutput] = field(default_factory=dict)


def run_beam_searches(
    engine: LLMEngine,
    requests: Sequence[BeamSearchRequest],
    concurrency_limit: int | None = None,
    between_steps: Callable[[], None] = lambda: None,
    ended: Callable[[RequestOutput], None] | None = None,
) -> list[RequestOutput]:
    """Serves beam searches and returns their outputs in order; when this is left, none of their requests is open.

    Args:
        engine: has no other requests.
        requests: the searches; `timeout_s` has no effect here.
        concurrency_limit: searches at once; None = all.
        between_steps: called before every engine step; may raise.
        ended: called with the output of each search when it ends.

    Raises:
        InvalidRequestError: a search cannot be served as it is; nothing has been computed then.
    """
    searches: list[BeamSearch] = []
    rounds: dict[str, _Round] = {}
    outputs: dict[int, RequestOutput] = {}
    with contextlib.ExitStack() as stack:
        for request in requests:
            search = engine.begin_beam_search(request)
            stack.callback(engine.end_beam_search, search)
            searches.append(search)
        waiting = iter(searches)
        stack.callback(lambda: engine.abort_request(list(rounds)))
        for _ in range(concurrency_limit or len(searches)):
            _begin_round(engine, rounds, next(waiting, None))
        while rounds:
            between_steps()
            for step_output in engine.step():
                finished = _take(engine, rounds, step_output)
                if finished is not None:
                    outputs[id(finished)] = finished.output(engine.tokenizer)
                    if ended is not None:
                        ended(outputs[id(finished)])
                    _begin_round(engine, rounds, next(waiting, None))
    return [outputs[id(search)] for search in searches]


def beam_sequences(output: RequestOutput, tokenizer: Tokenizer, lora_request: LoRARequest | None) -> BeamSearchOutput:
    """Returns the output of a search in the shape vLLM gives it: with the prompt, and the text of both together."""
    return BeamSearchOutput(
        [
            BeamSearchSequence(
                tokens=[*output.prompt_token_ids, *sample.token_ids],
                cum_logprob=sample.cumulative_logprob or 0.0,
                text=tokenizer.decode([*output.prompt_token_ids, *sample.token_ids]),
                logprobs=sample.logprobs,
                finish_reason=sample.finish_reason,
                stop_reason=sample.stop_reason,
                lora_request=lora_request,
            )
            for sample in output.outputs
        ]
    )


def _begin_round(engine: LLMEngine, rounds: dict[str, _Round], search: BeamSearch | None) -> None:
    if search is not None:
        begun = _Round(search, engine.add_steps(search))
        rounds |= dict.fromkeys(begun.step_ids, begun)


def _take(engine: LLMEngine, rounds: dict[str, _Round], output: RequestOutput) -> BeamSearch | None:
    """Takes the output of one request; returns its search if that ends with it."""
    ended = rounds[output.request_id]
    ended.outputs[output.request_id] = output
    if len(ended.outputs) < len(ended.step_ids):
        return None
    for step_id in ended.step_ids:
        del rounds[step_id]
    ended.search.advance([ended.outputs[step_id] for step_id in ended.step_ids])
    if ended.search.is_finished:
        return ended.search
    _begin_round(engine, rounds, ended.search)
    return None
