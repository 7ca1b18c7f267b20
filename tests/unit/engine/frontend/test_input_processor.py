"""What passes from requests to core requests, and what is refused."""

from __future__ import annotations

import dataclasses

import pytest

from tests.engine_fakes import MAX_MODEL_LEN, engine_config
from vllm_mxext.engine.backends.fake_tokenizer import FakeTokenizer
from vllm_mxext.engine.frontend.input_processor import InputProcessor
from vllm_mxext.errors import ContextLengthExceededError, InvalidRequestError
from vllm_mxext.requests import GenerateRequest, Prompt, TextPrompt, TokensPrompt
from vllm_mxext.sampling_params import SamplingParams

PARAMS = SamplingParams(max_tokens=8)


@pytest.fixture
def processor() -> InputProcessor:
    seeds = iter([2**64 - 1, 11, 12])
    return InputProcessor(engine_config(), FakeTokenizer(), lambda: next(seeds))


def request(prompt: Prompt | None = None, params: SamplingParams = PARAMS, **changes: object) -> GenerateRequest:
    return GenerateRequest("r", prompt or TextPrompt("hi"), params, **changes)


def tokens(count: int) -> TokensPrompt:
    return TokensPrompt((65,) * count)


def test_text_is_tokenized_and_kept(processor: InputProcessor) -> None:
    processed = processor.process(request(TextPrompt("hi")), 5.0)
    assert processed.prompt_text == "hi"
    assert processed.prompt_token_ids == [FakeTokenizer.BOS, *b"hi"]
    assert processed.arrival_s == 5.0


def test_special_tokens_are_left_out_on_request(processor: InputProcessor) -> None:
    processed = processor.process(request(TextPrompt("hi", add_special_tokens=False)), 0.0)
    assert processed.prompt_token_ids == [*b"hi"]


@pytest.mark.promise("PAIN-6")
def test_pain_6_a_text_that_begins_with_bos_does_not_get_another(processor: InputProcessor) -> None:
    for text in ("<s>hi", "hi"):
        assert processor.process(request(TextPrompt(text)), 0.0).prompt_token_ids == [FakeTokenizer.BOS, *b"hi"]
    doubled = processor.process(request(TextPrompt("<s><s>hi", add_special_tokens=False)), 0.0)
    assert doubled.prompt_token_ids == [FakeTokenizer.BOS, FakeTokenizer.BOS, *b"hi"]


def test_token_ids_are_used_as_they_are(processor: InputProcessor) -> None:
    (sample,) = processor.process(request(TokensPrompt((1, 2, 3))), 0.0).samples
    assert sample.prompt_token_ids == [1, 2, 3]
    assert sample.request_id == "r#0"
    assert sample.group_id is None


def test_a_missing_seed_is_drawn_and_a_given_one_kept(processor: InputProcessor) -> None:
    assert processor.process(request(), 0.0).samples[0].seed == 2**64 - 1
    assert processor.process(request(params=PARAMS.clone(seed=42)), 0.0).samples[0].seed == 42
    assert processor.process(request(params=PARAMS.clone(seed=-2)), 0.0).samples[0].seed == 2**64 - 2


def test_samples_have_ids_and_seeds_of_their_own_and_share_a_group(processor: InputProcessor) -> None:
    samples = processor.process(request(params=PARAMS.clone(n=3)), 0.0).samples
    assert [sample.request_id for sample in samples] == ["r#0/0", "r#0/1", "r#0/2"]
    assert [sample.seed for sample in samples] == [2**64 - 1, 0, 1]
    assert {sample.group_id for sample in samples} == {"r#0"}


def test_the_core_never_sees_an_id_twice(processor: InputProcessor) -> None:
    ids = [processor.process(request(), 0.0).samples[0].request_id for _ in range(3)]
    assert ids == ["r#0", "r#1", "r#2"]


def test_end_of_text_tokens_come_from_model_and_tokenizer() -> None:
    model = engine_config().model
    model = dataclasses.replace(model, spec=dataclasses.replace(model.spec, eos_token_ids=(3, 9_999)))
    processor = InputProcessor(dataclasses.replace(engine_config(), model=model), FakeTokenizer(), lambda: 0)
    assert processor.process(request(), 0.0).samples[0].eos_token_ids == [3, FakeTokenizer.EOS]


def test_max_tokens_defaults_to_the_remaining_context(processor: InputProcessor) -> None:
    processed = processor.process(request(tokens(10), PARAMS.clone(max_tokens=None)), 0.0)
    assert processed.samples[0].params.max_tokens == MAX_MODEL_LEN - 10


def test_a_prompt_that_fills_the_context_to_the_last_token_is_served(processor: InputProcessor) -> None:
    processed = processor.process(request(tokens(MAX_MODEL_LEN - 8)), 0.0)
    assert processed.samples[0].params.max_tokens == 8


def test_prompt_plus_output_beyond_the_context_is_refused_in_the_words_clients_look_for(
    processor: InputProcessor,
) -> None:
    with pytest.raises(ContextLengthExceededError) as refusal:
        processor.process(request(tokens(MAX_MODEL_LEN - 7)), 0.0)
    assert str(refusal.value) == (
        "This model's maximum context length is 256 tokens. However, you requested 257 tokens (249 in the messages, "
        "8 in the completion). Please reduce the length of the messages or completion."
    )
    assert refusal.value.param == "max_tokens"


@pytest.mark.parametrize("max_tokens", [None, 1])
def test_a_prompt_longer_than_the_context_is_refused(processor: InputProcessor, max_tokens: int | None) -> None:
    with pytest.raises(ContextLengthExceededError) as refusal:
        processor.process(request(tokens(MAX_MODEL_LEN), PARAMS.clone(max_tokens=max_tokens)), 0.0)
    assert str(refusal.value) == (
        "This model's maximum context length is 256 tokens. However, your messages resulted in 256 tokens. "
        "Please reduce the length of the messages."
    )


@pytest.mark.parametrize(
    ("bad", "param"),
    [
        (request(TokensPrompt(())), "prompt"),
        (request(TextPrompt("", add_special_tokens=False)), "prompt"),
        (request(TokensPrompt((1, FakeTokenizer.SIZE))), "prompt"),
        (request(TokensPrompt((-1,))), "prompt"),
        (request(TokensPrompt((True,))), "prompt"),
        (request(TokensPrompt((1.0,))), "prompt"),  # type: ignore[arg-type]
        (request(params=PARAMS.clone(stop_token_ids=(FakeTokenizer.SIZE,))), "stop_token_ids"),
        (request(params=PARAMS.clone(logprobs=21)), "logprobs"),
        (request(params=PARAMS.clone(logprobs=-1)), "logprobs"),
        (request(tokens(250), SamplingParams(max_tokens=None, min_tokens=7)), "min_tokens"),
        (request(priority=2**31), "priority"),
        (request(priority=1), "priority"),
        (request(cache_salt=""), "cache_salt"),
        (request(cache_salt="x" * 129), "cache_salt"),
        (request(cache_salt="a/b"), "cache_salt"),
        (request(cache_salt="a\0b"), "cache_salt"),
    ],
)
def test_what_cannot_be_served_is_refused_with_the_field(
    processor: InputProcessor, bad: GenerateRequest, param: str
) -> None:
    with pytest.raises(InvalidRequestError) as refusal:
        processor.process(bad, 0.0)
    assert refusal.value.param == param


def test_all_log_probabilities_are_allowed_without_a_limit() -> None:
    model = dataclasses.replace(engine_config().model, max_logprobs=-1)
    processor = InputProcessor(dataclasses.replace(engine_config(), model=model), FakeTokenizer(), lambda: 0)
    for logprobs in (-1, 1000):
        assert processor.process(request(params=PARAMS.clone(logprobs=logprobs)), 0.0).samples


def test_salt_and_priority_reach_the_core() -> None:
    processor = InputProcessor(engine_config(policy="priority"), FakeTokenizer(), lambda: 0)
    (sample,) = processor.process(request(cache_salt="team-a", priority=-3), 0.0).samples
    assert (sample.cache_salt, sample.priority) == ("team-a", -3)


@pytest.mark.parametrize(
    ("side", "limit", "expected"), [("left", 2, b"lo"), ("right", 2, [FakeTokenizer.BOS, *b"h"]), ("left", 99, None)]
)
def test_a_prompt_is_cut_to_what_is_asked_for(
    processor: InputProcessor, side: str, limit: int, expected: object
) -> None:
    params = PARAMS.clone(truncate_prompt_tokens=limit, truncation_side=side)
    processed = processor.process(request(TextPrompt("hello"), params), 0.0)
    whole = [FakeTokenizer.BOS, *b"hello"]
    assert processed.prompt_token_ids == (whole if expected is None else list(expected))
    assert processed.prompt_text == ("hello" if expected is None else None)


def test_minus_one_cuts_a_prompt_to_what_the_model_has_room_for(processor: InputProcessor) -> None:
    processed = processor.process(request(tokens(MAX_MODEL_LEN * 2), PARAMS.clone(truncate_prompt_tokens=-1)), 0.0)
    assert len(processed.prompt_token_ids) == MAX_MODEL_LEN - PARAMS.max_tokens
    unlimited = PARAMS.clone(truncate_prompt_tokens=-1, max_tokens=None)
    assert processor.process(request(tokens(MAX_MODEL_LEN * 2), unlimited), 0.0).samples[0].params.max_tokens == 1


def test_bad_words_become_tokens_with_and_without_a_space_before_them(processor: InputProcessor) -> None:
    (sample,) = processor.process(request(params=PARAMS.clone(bad_words=["ab", " ab", "c"])), 0.0).samples
    assert sample.rules is not None
    assert [bytes(ids) for ids in sample.rules.bad_words] == [b"ab", b" ab", b"c", b" c"]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("logit_bias", {FakeTokenizer.SIZE: 1.0}),
        ("logit_bias", {-1: 1.0}),
        ("allowed_token_ids", (5, FakeTokenizer.SIZE)),
        ("logprob_token_ids", (-3,)),
        ("bad_words", tuple(map(str, range(1025)))),
        ("truncate_prompt_tokens", MAX_MODEL_LEN + 1),
    ],
)
def test_choices_of_tokens_that_cannot_be_are_refused(processor: InputProcessor, field: str, value: object) -> None:
    with pytest.raises(InvalidRequestError) as error:
        processor.process(request(params=PARAMS.clone(**{field: value})), 0.0)
    assert error.value.param == field
