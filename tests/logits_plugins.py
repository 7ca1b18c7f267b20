"""Logits processors as users write them, some of them broken."""

from __future__ import annotations

from typing import Any

from vllm_mxext.logits_processors import LogitsProcessor
from vllm_mxext.sampling_params import SamplingParams


def argument(params: SamplingParams, name: str) -> Any:
    return (params.extra_args or {}).get(name)


class OnlyToken(LogitsProcessor):
    """Lets a request sample nothing but the token it names."""

    @classmethod
    def validate_params(cls, params):
        if not isinstance(argument(params, "only"), (int, type(None))):
            raise ValueError("only must be a token id.")  # noqa: TRY004 - vLLM's rule

    def new_req_logits_processor(self, params):
        token_id = argument(params, "only")
        if token_id is None:
            return None

        def process(output_token_ids, logits):
            logits[:token_id] = float("-inf")
            logits[token_id + 1 :] = float("-inf")
            return logits

        return process


class SecondThought(LogitsProcessor):
    """Adds to the first prompt token after the first output token; sees prompt and output."""

    def new_req_logits_processor(self, params):
        if not argument(params, "second"):
            return None

        def process(prompt_token_ids, output_token_ids, logits):
            if output_token_ids:
                logits[prompt_token_ids[0]] += 1000
            return logits

        return process


class Broken(LogitsProcessor):
    """Breaks where the request says."""

    def new_req_logits_processor(self, params):
        how = argument(params, "broken")
        if how == "early":
            raise RuntimeError("broken early")

        def process(output_token_ids, logits):
            if how == "late":
                raise RuntimeError("broken late")
            if how == "shape":
                return logits[:3]
            if how == "nothing":
                return None
            logits[:] = float("nan")
            return logits

        return process if how else None


class Careless(LogitsProcessor):
    """Forgets that parameters may be missing."""

    @classmethod
    def validate_params(cls, params):
        params.extra_args["needed"]

    def new_req_logits_processor(self, params):
        return None


class Batchwise:
    """vLLM's form for whole batches."""

    def apply(self, logits):
        return logits

    def update_state(self, batch_update):
        pass


class Unmakeable(LogitsProcessor):
    """Cannot be made."""

    def __init__(self, vllm_config, device, is_pin_memory):
        raise RuntimeError("no licence")

    def new_req_logits_processor(self, params):
        return None
