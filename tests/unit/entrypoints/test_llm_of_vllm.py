"""What programs written for vLLM call on `LLM`: it works, or it is refused with the reason."""

from __future__ import annotations

import signal
from pathlib import Path
from typing import Any

import pytest

from tests.unit.entrypoints.conftest import GREEDY, load
from vllm_mxext.beam_search_params import BeamSearchParams
from vllm_mxext.entrypoints.llm import LLM
from vllm_mxext.errors import ConfigError, InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.observability.reading import Counter, Gauge, Histogram
from vllm_mxext.requests import LoRARequest
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("ENG-1")


def test_arguments_of_vllms_constructor_are_taken_at_their_defaults(checkpoint: Path) -> None:
    defaults: dict[str, Any] = {
        "runner": "auto", "convert": "auto", "task": "auto", "tokenizer": None, "tokenizer_mode": "auto",
        "skip_tokenizer_init": False, "trust_remote_code": False, "tensor_parallel_size": 1, "quantization": None,
        "revision": None, "tokenizer_revision": None, "chat_template": None, "seed": 0, "gpu_memory_utilization": 0.9,
        "swap_space": 0, "cpu_offload_gb": 0, "enforce_eager": False, "disable_custom_all_reduce": False,
        "hf_token": None, "hf_overrides": None, "mm_processor_kwargs": None, "pooler_config": None,
        "override_pooler_config": None, "structured_outputs_config": None, "kv_cache_memory_bytes": None,
        "compilation_config": None, "logits_processors": None, "spec_method": None, "spec_model": None,
        "spec_tokens": None, "disable_log_stats": True, "max_seq_len_to_capture": None, "enable_lora": False,
    }  # fmt: skip
    with load(checkpoint, **defaults) as llm:
        assert llm.generate("a", GREEDY, use_tqdm=False)[0].finished


@pytest.mark.parametrize("argument", [{"tensor_parallel_size": 2}, {"lora_dtype": "float16"}, {"swap_space": 4}])
def test_arguments_that_ask_for_more_are_refused(checkpoint: Path, argument: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(argument))):
        load(checkpoint, **argument)


def test_a_stream_brings_the_pieces_of_every_prompt(llm: LLM) -> None:
    whole = llm.generate(["a", "b"], GREEDY, use_tqdm=False)
    texts, tokens = ["", ""], [[], []]  # type: ignore[var-annotated]
    for output in llm.stream(["a", "b"], GREEDY):
        texts[int(output.request_id)] += output.outputs[0].text
        tokens[int(output.request_id)] += output.outputs[0].token_ids
    assert texts == [output.outputs[0].text for output in whole]
    assert tokens == [output.outputs[0].token_ids for output in whole]


def test_leaving_a_stream_aborts_it(llm: LLM) -> None:
    for _ in llm.stream(["a", "b"], GREEDY.clone(max_tokens=100)):
        break
    llm.generate("c", GREEDY, use_tqdm=False)
    assert not llm.engine.has_unfinished_requests()


def test_nothing_else_is_served_while_a_stream_is_open(llm: LLM) -> None:
    stream = llm.stream(["a"], GREEDY)
    next(stream)
    with pytest.raises(InvalidRequestError, match="stream of this LLM is open"):
        llm.generate("b", GREEDY, use_tqdm=False)
    assert [output.finished for output in stream][-1]


def test_of_two_streams_the_second_begins_when_the_first_has_ended(llm: LLM) -> None:
    first, second = llm.stream(["a"], GREEDY), llm.stream(["b"], GREEDY)
    next(first)
    with pytest.raises(InvalidRequestError, match="stream of this LLM is open"):
        next(second)
    assert [output.finished for output in first][-1]
    assert [output.finished for output in llm.stream(["b"], GREEDY)][-1]


def test_ctrl_c_ends_a_stream_between_steps(llm: LLM) -> None:
    stream = llm.stream(["a"], GREEDY.clone(max_tokens=100))
    next(stream)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        next(stream)
    assert not llm.engine.has_unfinished_requests()


def test_beam_search_returns_sequences_with_their_prompts(llm: LLM) -> None:
    params = BeamSearchParams(beam_width=3, max_tokens=5, ignore_eos=True)
    all_at_once = llm.beam_search(["hello", {"prompt_token_ids": [5, 6]}, "x"], params)
    in_turn = llm.beam_search(["hello", {"prompt_token_ids": [5, 6]}, "x"], params, concurrency_limit=1)
    assert all_at_once == in_turn
    (first, *_) = all_at_once[0].sequences
    prompt = llm.get_tokenizer().encode("hello")
    assert first.tokens[: len(prompt)] == prompt
    assert len(first.tokens) == len(prompt) + 5
    assert first.text.startswith("hello")
    scores = [sequence.cum_logprob for sequence in all_at_once[0].sequences]
    assert scores == sorted(scores, reverse=True)
    greedy = llm.generate("hello", GREEDY.clone(max_tokens=5), use_tqdm=False)[0].outputs[0].token_ids
    (narrow,) = llm.beam_search("hello", BeamSearchParams(1, max_tokens=5, ignore_eos=True))[0].sequences
    assert narrow.tokens[len(prompt) :] == greedy


def test_a_bad_prompt_is_refused_before_any_search(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        llm.beam_search(["fine", [10**9]], BeamSearchParams(2))
    assert not llm.engine.has_unfinished_requests()


def test_a_search_draws_no_seed(checkpoint: Path) -> None:
    params = SamplingParams(max_tokens=8, ignore_eos=True)
    found = []
    for searches in (False, True):
        with load(checkpoint) as llm:
            if searches:
                llm.beam_search("a", BeamSearchParams(2, max_tokens=2))
            found.append(llm.generate("a", params, use_tqdm=False)[0].outputs[0].token_ids)
    assert found[0] == found[1]


def test_figures_are_those_of_a_server(checkpoint: Path) -> None:
    with load(checkpoint) as llm:
        llm.generate(["a", "b"], GREEDY, use_tqdm=False)
        found = {(metric.name, metric.labels.get("finished_reason")): metric for metric in llm.get_metrics()}
    tokens, usage = found["vllm:generation_tokens", None], found["vllm:kv_cache_usage_perc", None]
    assert isinstance(tokens, Counter)
    assert tokens.value == 16
    assert isinstance(usage, Gauge)
    latency = found["vllm:e2e_request_latency_seconds", None]
    assert isinstance(latency, Histogram)
    assert latency.count == latency.buckets["+Inf"] == 2
    length = found["vllm:request_success", "length"]
    assert isinstance(length, Counter)
    assert length.value == 2


def test_the_salt_of_a_prompt_keeps_prefixes_apart(llm: LLM) -> None:
    text = "a long prompt that fills more than one block of the cache, to be sure"
    llm.reset_prefix_cache()
    found = [
        llm.generate({"prompt": text, "cache_salt": salt}, GREEDY, use_tqdm=False)[0].num_cached_tokens
        for salt in ("one", "two", "one")
    ]
    assert found[:2] == [0, 0]
    assert found[2]


def test_special_tokens_can_be_left_out(llm: LLM) -> None:
    (output,) = llm.generate("a", GREEDY, use_tqdm=False, tokenization_kwargs={"add_special_tokens": False})
    assert output.prompt_token_ids == llm.get_tokenizer().encode("a", add_special_tokens=False)
    with pytest.raises(UnsupportedFeatureError, match="truncate_prompt_tokens"):
        llm.generate("a", GREEDY, use_tqdm=False, tokenization_kwargs={"max_length": 3})


@pytest.mark.parametrize("part", ["prompt_embeds", "multi_modal_data", "mm_processor_kwargs"])
def test_prompts_that_are_no_text_are_refused_by_name(llm: LLM, part: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=part):
        llm.generate({"prompt": "a", part: [1.0]}, GREEDY, use_tqdm=False)  # type: ignore[misc]


def test_what_the_engine_cannot_do_is_refused_with_the_reason(llm: LLM) -> None:
    adapter = LoRARequest("a", 1, "/none")
    with pytest.raises(UnsupportedFeatureError, match="LoRA"):
        llm.generate("a", GREEDY, lora_request=adapter)
    with pytest.raises(UnsupportedFeatureError, match="LoRA"):
        llm.chat([{"role": "user", "content": "a"}], GREEDY, lora_request=adapter)
    with pytest.raises(UnsupportedFeatureError, match="LoRA"):
        llm.beam_search("a", BeamSearchParams(2), lora_request=adapter)
    for profile in (llm.start_profile, llm.stop_profile):
        with pytest.raises(UnsupportedFeatureError, match="profiling"):
            profile()
    for rest in (llm.sleep, llm.wake_up):
        with pytest.raises(UnsupportedFeatureError, match="sleep"):
            rest()


@pytest.mark.promise("CLI-5")
def test_the_fit_report_names_memory_and_kernels(llm: LLM) -> None:
    report = llm.fit_report()
    assert report.fits
    assert report.as_dict()["memory"]["num_blocks"] > 0
    assert report.kernels in str(report)


def test_generation_config_adds_its_ends_of_text() -> None:
    params = SamplingParams(stop_token_ids=(7,))
    config = {"eos_token_id": [1, 2, 7]}
    assert params.update_from_generation_config(config, 2).stop_token_ids == (7, 1)
    assert params.update_from_generation_config({"eos_token_id": 3}).stop_token_ids == (7, 3)
    assert params.update_from_generation_config({}) is params
    ignoring = SamplingParams(ignore_eos=True)
    assert ignoring.update_from_generation_config(config).stop_token_ids == ()
