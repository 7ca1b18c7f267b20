"""Compares what the engine serves with what transformers computes from the same checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from tests.golden.engine import WHOLE, Prompt, Schedule, serve
from tests.golden.reference import reference
from vllm_mxext.config.engine import DType

DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}


@dataclass(frozen=True)
class Comparison:
    """Differences over all sampled positions of some prompts, against transformers in float32 on the same weights.

    The context of each position is what the engine itself generated, so that one early difference does not count for
    all positions after it. All errors are absolute errors of logits.

    Attributes:
        num_tokens: sampled positions.
        num_agreeing: positions where the engine's token is the most likely one of the reference.
        reference_agreeing: positions where transformers in the same dtype finds that token too.
        max_error: largest.
        rms_error: root mean square.
        reference_max_error: the same for transformers in the same dtype; 0 in float32.
        reference_rms_error: the same for transformers in the same dtype; 0 in float32.
        max_logit: largest absolute logit.
        min_margin: smallest distance of the reference's two most likely tokens.
    """

    num_tokens: int
    num_agreeing: int
    reference_agreeing: int
    max_error: float
    rms_error: float
    reference_max_error: float
    reference_rms_error: float
    max_logit: float
    min_margin: float


def make_prompts(lengths: Sequence[int], vocab_size: int = 301, num_tokens: int = 12) -> list[Prompt]:
    """Random prompts, each with its own seed."""
    return [
        Prompt(
            tuple(torch.randint(vocab_size, (length,), generator=torch.Generator().manual_seed(length)).tolist()),
            num_tokens,
        )
        for length in lengths
    ]


def compare(
    folder: Path, dtype: DType, prompts: Sequence[Prompt], schedule: Schedule = WHOLE, *, kernels: str
) -> Comparison:
    """Serves the prompts and compares every sampled position."""
    exact, rounded = reference(folder, torch.float32), reference(folder, DTYPES[dtype])
    answers = serve(folder, dtype, prompts, schedule, kernels=kernels).answers
    pairs = list(zip(prompts, answers, strict=True))
    tokens = torch.tensor([token_id for answer in answers for token_id in answer.token_ids])
    ours = torch.cat([answer.stacked for answer in answers])
    truth = torch.cat([exact.logits(prompt.token_ids, answer.token_ids) for prompt, answer in pairs])
    theirs = torch.cat([rounded.logits(prompt.token_ids, answer.token_ids) for prompt, answer in pairs])
    top = truth.topk(2).values
    return Comparison(
        num_tokens=len(tokens),
        num_agreeing=int((truth.argmax(1) == tokens).sum()),
        reference_agreeing=int((truth.argmax(1) == theirs.argmax(1)).sum()),
        max_error=float((ours - truth).abs().max()),
        rms_error=float((ours - truth).square().mean().sqrt()),
        reference_max_error=float((theirs - truth).abs().max()),
        reference_rms_error=float((theirs - truth).square().mean().sqrt()),
        max_logit=float(truth.abs().max()),
        min_margin=float((top[:, 0] - top[:, 1]).min()),
    )


def relative_error(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return float((result - expected).norm() / expected.norm())
