"""What a program sees of batch invariance: the same answers alone and together, and seeds that mean what they say."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine_fakes import write_tiny_checkpoint
from tests.golden.engine import kernel_sets
from vllm_mxext import LLM, SamplingParams, envs
from vllm_mxext.outputs import RequestOutput

PLAIN = SamplingParams(max_tokens=10, ignore_eos=True, logprobs=2)
KINDS = [
    PLAIN.clone(temperature=0),
    PLAIN.clone(seed=3),
    PLAIN.clone(seed=4, temperature=0.7, top_p=0.9, top_k=50),
    PLAIN.clone(seed=5, n=2, presence_penalty=0.5),
]
PROMPTS = [[random.Random(i).randrange(250) for _ in range(1 + 7 * i)] for i in range(8)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_checkpoint(tmp_path_factory.mktemp("model"))


@pytest.fixture(params=kernel_sets())
def llm(request: pytest.FixtureRequest, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LLM]:
    monkeypatch.setenv(envs.CPU_ISA.name, request.param)
    with load(folder) as llm:
        yield llm


def load(folder: Path) -> LLM:
    limits = {"max_num_batched_tokens": 64, "max_num_seqs": 16, "num_threads": 1}
    return LLM(folder, load_format="dummy", dtype="bfloat16", deterministic=True, **limits)


def answers(outputs: list[RequestOutput]) -> list[list[tuple[list[int], object]]]:
    """Tokens and log probabilities, to the last bit, of every sample."""
    return [[(list(sample.token_ids), sample.logprobs) for sample in output.outputs] for output in outputs]


@pytest.mark.promise("PAIN-17", "DET-1")
def test_pain_17_answers_are_the_same_alone_and_in_a_batch(llm: LLM) -> None:
    params = [KINDS[i % len(KINDS)] for i in range(len(PROMPTS))]
    together = answers(llm.generate(PROMPTS, params, use_tqdm=False))
    llm.reset_prefix_cache()
    alone = [llm.generate([prompt], one, use_tqdm=False)[0] for prompt, one in zip(PROMPTS, params, strict=True)]
    assert answers(alone) == together
    backwards = answers(llm.generate(PROMPTS[::-1], params[::-1], use_tqdm=False))
    assert backwards[::-1] == together


@pytest.mark.promise("PAIN-17", "SAMP-2")
def test_pain_17_a_seed_belongs_to_its_request(llm: LLM) -> None:
    params = [PLAIN.clone(seed=seed) for seed in (1, 2, 1, None, None)]
    first, other, same, unseeded, also_unseeded = answers(llm.generate([PROMPTS[3]] * 5, params, use_tqdm=False))
    assert same == first
    assert len({str(answer) for answer in (first, other, unseeded, also_unseeded)}) == 4
    (samples,) = answers(llm.generate(PROMPTS[3], PLAIN.clone(seed=1, n=2), use_tqdm=False))
    assert samples[0] == first[0]
    assert samples[1] != samples[0]


@pytest.mark.promise("PAIN-17", "SAMP-2")
def test_pain_17_a_program_without_seeds_repeats_itself(llm: LLM, folder: Path) -> None:
    with load(folder) as again:
        first, second = (answers(one.generate(PROMPTS[:3], PLAIN, use_tqdm=False)) for one in (llm, again))
    assert first == second
