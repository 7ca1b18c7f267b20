from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vllm_mxext.native.sampling.metadata import FAILED_TOKEN_ID, SamplerOutput, SamplingColumns
from vllm_mxext.native.sampling.sampler import Sampler
from vllm_mxext.sampling_params import SamplingParams

VOCAB_SIZE = 1100
PROMPT = [3, 5, 5, 7]

KINDS = {
    "greedy": SamplingParams(temperature=0),
    "temperature": SamplingParams(temperature=0.7),
    "min_p": SamplingParams(min_p=0.02),
    "top_k": SamplingParams(top_k=40),
    "top_p": SamplingParams(top_p=0.8),
    "all": SamplingParams(temperature=1.3, top_k=200, top_p=0.95, min_p=0.001),
    "penalties": SamplingParams(presence_penalty=0.5, frequency_penalty=0.3, repetition_penalty=1.2),
    "logprobs": SamplingParams(logprobs=3),
    "bias": SamplingParams(logit_bias={4: 5.0, 1: -3.0}, logprob_token_ids=(1,)),
    "allowed": SamplingParams(allowed_token_ids=(0, 1, 2, 3, 4)),
    "typical": SamplingParams(typical_p=0.7, top_n_sigma=2.0),
    "xtc": SamplingParams(xtc_probability=0.5, xtc_threshold=0.01, dynatemp_range=0.5),
    "mirostat_1": SamplingParams(mirostat=1),
    "mirostat_2": SamplingParams(mirostat=2, mirostat_tau=3.0),
    "dry": SamplingParams(temperature=0, dry_multiplier=2.0, dry_allowed_length=1),
    "min_tokens": SamplingParams(min_tokens=10, stop_token_ids=(2,), max_tokens=20),
}


def random_logits(num_rows: int, seed: int = 0, vocab_size: int = VOCAB_SIZE) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal((num_rows, vocab_size)).astype(np.float32) * 3)


def sample(
    logits: torch.Tensor,
    params: Sequence[SamplingParams],
    *,
    seeds: Sequence[int] | None = None,
    outputs: Sequence[Sequence[int]] | None = None,
    prompt: Sequence[int] = PROMPT,
    eos: Sequence[int] = (0,),
) -> SamplerOutput:
    """Samples each row of `logits` after `prompt` and its own output so far."""
    count = len(params)
    outputs = outputs or [[]] * count
    columns = SamplingColumns(count)
    tokens = np.zeros((count, 64), dtype=np.int32)
    lengths = np.zeros(count, dtype=np.int64)
    for row, (one, output) in enumerate(zip(params, outputs, strict=True)):
        columns.set_row(row, one, seeds[row] if seeds else row, eos)
        lengths[row] = len(prompt) + len(output)
        tokens[row, : lengths[row]] = [*prompt, *output]
    metadata = columns.select(np.arange(count), lengths, np.full(count, len(prompt)), tokens)
    return Sampler().sample(logits.clone(), metadata)


def test_greedy_takes_the_most_likely_token_and_the_lowest_of_equals():
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[0, 9] = 1
    logits[1, [4, 700]] = 2
    assert sample(logits, [KINDS["greedy"]] * 3).token_ids.tolist() == [9, 4, 0]


@pytest.mark.promise("SAMP-2")
@pytest.mark.parametrize("vocab_size", [5, 512, 1100, 40_000])
def test_a_row_gives_the_same_token_and_logprobs_alone_and_anywhere_in_a_batch(vocab_size):
    params = [one.clone(logprobs=one.logprobs or 2) for one in KINDS.values() for _ in range(4)]
    logits = random_logits(len(params), vocab_size=vocab_size)
    seeds = [1000 + row for row in range(len(params))]
    outputs = [[row % 5, 1] for row in range(len(params))]
    prompt = [3, 4, 4]
    whole = sample(logits, params, seeds=seeds, outputs=outputs, prompt=prompt)
    order = np.random.default_rng(1).permutation(len(params)).tolist()
    shuffled = sample(
        logits[order],
        [params[i] for i in order],
        seeds=[seeds[i] for i in order],
        outputs=[outputs[i] for i in order],
        prompt=prompt,
    )
    for place, row in enumerate(order):
        alone = sample(logits[row : row + 1], [params[row]], seeds=[seeds[row]], outputs=[outputs[row]], prompt=prompt)
        assert whole.token_ids[row] == shuffled.token_ids[place] == alone.token_ids[0]
        assert whole.logprobs[row] == shuffled.logprobs[place] == alone.logprobs[0]


@pytest.mark.promise("SAMP-1")
@pytest.mark.parametrize("kind", ["temperature", "min_p", "top_k", "top_p", "all"])
def test_tokens_follow_the_exact_probabilities(kind):
    params, draws = KINDS[kind], 20_000
    logits = random_logits(1, seed=5, vocab_size=30) * 0.5
    weights = np.exp(logits[0].numpy().astype(np.float64) / params.temperature)
    order = np.argsort(-weights, kind="stable")
    kept = order[weights[order] >= params.min_p * weights.max()][: params.top_k or None]
    shares = weights[kept] / weights[kept].sum()
    kept = kept[np.cumsum(shares) - shares < params.top_p]
    expected = weights[kept] / weights[kept].sum() * draws
    result = sample(logits.expand(draws, -1), [params] * draws, seeds=range(draws)).token_ids
    counts = np.bincount(result, minlength=30)
    assert counts.sum() == counts[kept].sum()
    chi_square = ((counts[kept] - expected) ** 2 / expected).sum()
    degrees = max(len(kept) - 1, 1)
    # 99.9% quantile of chi-square by Wilson and Hilferty; the seeds are fixed, so the result is too.
    assert chi_square < degrees * (1 - 2 / (9 * degrees) + 3.09 * np.sqrt(2 / (9 * degrees))) ** 3


def test_dense_sampling_reaches_tokens_in_every_block_with_their_probability():
    vocab_size, draws = 1500, 6000
    logits = torch.full((1, vocab_size), -torch.inf)
    tokens = [0, 511, 512, 1023, 1024, 1499]
    logits[0, tokens] = torch.log(torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]))
    result = sample(logits.expand(draws, -1), [SamplingParams()] * draws, seeds=range(draws)).token_ids
    counts = np.bincount(result, minlength=vocab_size)[tokens]
    assert counts.sum() == draws
    expected = np.arange(1, 7) / 21 * draws
    assert ((counts - expected) ** 2 / expected).sum() < 20.5  # 99.9% quantile, 5 degrees of freedom


def test_seed_and_position_decide_the_noise():
    logits = random_logits(1).expand(40, -1)
    params = [SamplingParams()] * 40
    by_seed = sample(logits, params, seeds=range(40)).token_ids
    assert by_seed.tolist() == sample(logits, params, seeds=range(40)).token_ids.tolist()
    assert len(set(by_seed.tolist())) > 10
    by_position = sample(logits, params, seeds=[7] * 40, outputs=[[1] * n for n in range(40)]).token_ids
    assert len(set(by_position.tolist())) > 10
    assert (
        sample(logits[:1], params[:1], seeds=[-1]).token_ids
        == sample(logits[:1], params[:1], seeds=[2**64 - 1]).token_ids
    )


@pytest.mark.parametrize("kind", ["top_k", "top_p"])
def test_keeping_one_token_is_greedy(kind):
    params = SamplingParams(top_k=1) if kind == "top_k" else SamplingParams(top_p=1e-6)
    logits = random_logits(20).round()
    expected = sample(logits, [KINDS["greedy"]] * 20).token_ids
    assert sample(logits, [params] * 20).token_ids.tolist() == expected.tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
def test_unusable_logits_fail_their_row_only(kind, bad):
    logits = random_logits(5)
    good = sample(logits, [KINDS[kind]] * 5)
    logits[2] = -torch.inf if bad is None else logits[2]
    if bad is not None:
        logits[2, 900] = bad
    result = sample(logits, [KINDS[kind]] * 5)
    assert result.token_ids[2] == FAILED_TOKEN_ID
    assert 2 not in result.logprobs
    others = [0, 1, 3, 4]
    assert result.token_ids[others].tolist() == good.token_ids[others].tolist()
    assert all(result.logprobs[row] == good.logprobs[row] for row in others if row in good.logprobs)


@pytest.mark.promise("SAMP-1")
@settings(max_examples=60, deadline=None)
@given(
    presence=st.floats(-2, 2),
    frequency=st.floats(-2, 2),
    repetition=st.floats(0.2, 3),
    output=st.lists(st.integers(0, 19), max_size=12),
    seed=st.integers(0, 1000),
)
def test_penalties_equal_their_definition(presence, frequency, repetition, output, seed):
    prompt = [3, 3, 11]
    logits = random_logits(1, seed, vocab_size=20)
    params = SamplingParams(
        temperature=0, presence_penalty=presence, frequency_penalty=frequency, repetition_penalty=repetition
    )
    expected = logits[0].numpy().astype(np.float64)
    for token in range(20):
        if token in prompt or token in output:
            expected[token] *= 1 / repetition if expected[token] > 0 else repetition
        expected[token] -= output.count(token) * frequency + (token in output) * presence
    token = int(sample(logits, [params], outputs=[output], prompt=prompt).token_ids[0])
    assert expected[token] >= expected.max() - 1e-4


def test_repetition_penalty_equals_that_of_transformers():
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, prompt = random_logits(1, seed=3), [3, 9, 9, 40]
    expected = RepetitionPenaltyLogitsProcessor(1.7)(torch.tensor([prompt]), logits.clone())
    columns = SamplingColumns(1)
    columns.set_row(0, SamplingParams(repetition_penalty=1.7), 0)
    metadata = columns.select(np.array([0]), np.array([4]), np.array([2]), np.array([prompt], dtype=np.int32))
    penalised = logits.clone()
    Sampler().sample(penalised, metadata)
    torch.testing.assert_close(penalised, expected)


@pytest.mark.promise("SAMP-3")
@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("temperature", [0.0, 0.01, 2.0])
@pytest.mark.parametrize("repetition", [1e-320, 1e-40, 1e40, 1e308])
def test_the_most_extreme_repetition_penalties_leave_usable_logits(repetition, temperature):
    logits = random_logits(4) * 1000
    logits[:, PROMPT[0]] = 0.0
    params = [SamplingParams(repetition_penalty=repetition, temperature=temperature)] * 4
    assert FAILED_TOKEN_ID not in sample(logits, params).token_ids


def test_stop_tokens_are_suppressed_until_min_tokens_are_there():
    logits = torch.zeros(3, VOCAB_SIZE)
    logits[:, 0], logits[:, 2], logits[:, 8] = 9, 8, 7
    params = SamplingParams(temperature=0, min_tokens=2, max_tokens=9, stop_token_ids=(2, VOCAB_SIZE + 5))
    result = sample(logits, [params] * 3, outputs=[[], [1], [1, 1]])
    assert result.token_ids.tolist() == [8, 8, 0]


@pytest.mark.promise("SAMP-4")
def test_logprobs_are_those_of_the_raw_logits_with_ranks():
    logits = random_logits(1, seed=2)
    params = SamplingParams(temperature=2.0, logprobs=4, presence_penalty=2.0, repetition_penalty=1.9)
    expected = torch.log_softmax(logits[0].double(), dim=0).numpy()
    result = sample(logits, [params], outputs=[[int(expected.argmax())]])
    entry, token = result.logprobs[0], int(result.token_ids[0])
    top = np.argsort(-expected, kind="stable")
    assert entry.token_ids == [token, *top[:4].tolist()]
    np.testing.assert_allclose(entry.logprobs, expected[entry.token_ids], atol=1e-5)
    assert entry.rank == int(np.flatnonzero(top == token)[0]) + 1


@pytest.mark.parametrize(("asked", "count"), [(0, 0), (5, 5), (-1, VOCAB_SIZE), (10**6, VOCAB_SIZE)])
def test_as_many_logprobs_are_reported_as_asked_for(asked, count):
    result = sample(random_logits(2), [SamplingParams(logprobs=asked), SamplingParams()])
    assert set(result.logprobs) == {0}
    assert len(result.logprobs[0].token_ids) == len(result.logprobs[0].logprobs) == 1 + count


def test_equally_likely_tokens_are_ranked_by_id():
    logits = torch.zeros(1, 10)
    for seed in range(8):
        result = sample(logits, [SamplingParams(logprobs=3)], seeds=[seed], prompt=[1])
        assert result.logprobs[0].token_ids[1:] == [0, 1, 2]
        assert result.logprobs[0].rank == result.token_ids[0] + 1


def test_a_moved_row_samples_as_before():
    logits = random_logits(1)
    columns = SamplingColumns(4)
    params = SamplingParams(top_p=0.9, min_tokens=3, frequency_penalty=0.1, logprobs=1)
    columns.set_row(3, params, 99, [0])
    tokens = np.zeros((4, 8), dtype=np.int32)
    arguments = np.array([6]), np.array([4]), tokens
    before = Sampler().sample(logits.clone(), columns.select(np.array([3]), *arguments))
    columns.move_row(3, 1)
    after = Sampler().sample(logits.clone(), columns.select(np.array([1]), *arguments))
    assert after.token_ids.tolist() == before.token_ids.tolist()
    assert after.logprobs == before.logprobs


def test_an_overwritten_row_keeps_nothing_of_the_request_before():
    columns = SamplingColumns(1)
    columns.set_row(0, SamplingParams(min_tokens=5, repetition_penalty=2.0, logprobs=2, top_k=3), 1, [0])
    columns.set_row(0, SamplingParams(temperature=0), 2)
    metadata = columns.select(np.array([0]), np.array([4]), np.array([4]), np.zeros((1, 8), dtype=np.int32))
    assert not metadata.tokens
    assert not metadata.suppressed
    result = Sampler().sample(random_logits(1), metadata)
    assert result.token_ids.tolist() == [int(random_logits(1).argmax())]
    assert not result.logprobs


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_logits_on_a_gpu_give_the_same_tokens():
    logits = random_logits(6)
    logits[3, 5] = torch.nan
    for params in KINDS.values():
        on_cpu, on_gpu = sample(logits, [params] * 6), sample(logits.cuda(), [params] * 6)
        assert on_gpu.token_ids.tolist() == on_cpu.token_ids.tolist()
