"""Offline generation on a tiny model with random weights."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.unit.entrypoints.conftest import GREEDY, load
from vllm_mxext.constraint_params import StructuredOutputsParams
from vllm_mxext.entrypoints.llm import LLM
from vllm_mxext.errors import ConfigError, EngineDeadError, InvalidRequestError
from vllm_mxext.outputs import RequestOutput
from vllm_mxext.requests import TokensPrompt
from vllm_mxext.sampling_params import SamplingParams

pytestmark = pytest.mark.promise("ENG-1")


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_a_list_of_prompts_gives_outputs_in_its_order(llm: LLM) -> None:
    prompts = [f"Number {i} is" for i in range(10)]
    outputs = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert [output.prompt for output in outputs] == prompts
    assert all(output.finished and output.outputs[0].finish_reason == "length" for output in outputs)
    alone = [llm.generate(prompt, GREEDY, use_tqdm=False)[0] for prompt in prompts]
    assert texts(outputs) == texts(alone)


def test_text_and_its_tokens_give_the_same(llm: LLM) -> None:
    token_ids = llm.get_tokenizer().encode("hello")
    outputs = llm.generate(
        ["hello", {"prompt": "hello"}, {"prompt_token_ids": token_ids}, token_ids, TokensPrompt(tuple(token_ids))],
        GREEDY,
        use_tqdm=False,
    )
    assert len(set(texts(outputs))) == 1


def test_each_prompt_can_have_parameters_of_its_own(llm: LLM) -> None:
    outputs = llm.generate(["a", "b"], [GREEDY, GREEDY.clone(max_tokens=3)], use_tqdm=False)
    assert [len(output.outputs[0].token_ids) for output in outputs] == [8, 3]


def test_several_samples_differ_and_repeat_with_their_seed(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=5, max_tokens=12, ignore_eos=True)
    first, second = (llm.generate("x", params, use_tqdm=False)[0] for _ in range(2))
    assert [sample.token_ids for sample in first.outputs] == [sample.token_ids for sample in second.outputs]
    assert len({tuple(sample.token_ids) for sample in first.outputs}) == 3


def test_a_conversation_is_rendered_by_the_chat_template(llm: LLM) -> None:
    messages = [{"role": "user", "content": "hi"}]
    (output,) = llm.chat(messages, GREEDY, use_tqdm=False)
    assert output.prompt == "user: hi\nassistant:"
    outputs = llm.chat([messages, messages], GREEDY, use_tqdm=False)
    assert texts(outputs) == texts([output]) * 2
    (output,) = llm.chat(messages, GREEDY, use_tqdm=False, chat_template="{{ messages[0].content }}!")
    assert output.prompt == "hi!"


def test_a_conversation_can_be_rendered_without_an_answer(llm: LLM) -> None:
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    template = "{{ messages[0].content }}{% if tools %}{{ tools[0].name }}{% endif %}"
    (rendered,) = llm.render(messages, chat_template=template, tools=[{"name": "t"}])
    assert rendered.text == "a\nbt"
    (output,) = llm.chat(
        messages, GREEDY, use_tqdm=False, chat_template=template, chat_template_content_format="openai"
    )
    assert output.prompt == str(messages[0]["content"])
    (output,) = llm.chat(messages, GREEDY, use_tqdm=False)
    assert tuple(output.prompt_token_ids) == llm.render([messages])[0].token_ids


def test_a_configured_chat_template_replaces_the_models(checkpoint: Path) -> None:
    with load(checkpoint, chat_template="{{ messages[0].content }}?") as llm:
        (output,) = llm.chat([{"role": "user", "content": "hi"}], GREEDY, use_tqdm=False)
        assert output.prompt == "hi?"
        assert llm.get_tokenizer().decode(output.prompt_token_ids) == "hi?"


def test_the_models_defaults_are_used_without_parameters(checkpoint: Path) -> None:
    (checkpoint / "generation_config.json").write_text('{"temperature": 0.5, "top_k": 7}')
    with load(checkpoint) as llm:
        params = llm.get_default_sampling_params()
        assert (params.temperature, params.top_k, params.max_tokens) == (0.5, 7, 16)
        (output,) = llm.generate("x", use_tqdm=False)
    (checkpoint / "generation_config.json").unlink()
    assert len(output.outputs[0].token_ids) <= 16


def test_a_bad_prompt_is_refused_before_anything_runs(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError):
        llm.generate(["fine", [10**9]], GREEDY, use_tqdm=False)
    with pytest.raises(InvalidRequestError, match="one entry per prompt"):
        llm.generate(["a", "b"], [GREEDY], use_tqdm=False)
    assert not llm.engine.has_unfinished_requests()


def test_ctrl_c_ends_generation_and_leaves_a_working_engine(llm: LLM, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_step, num_steps = llm.engine.step, 0

    def step() -> list[RequestOutput]:
        nonlocal num_steps
        num_steps += 1
        if num_steps == 3:
            signal.raise_signal(signal.SIGINT)
        return whole_step()

    monkeypatch.setattr(llm.engine, "step", step)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["a", "b"], GREEDY.clone(max_tokens=100), use_tqdm=False)
    assert num_steps == 3
    assert not llm.engine.has_unfinished_requests()
    monkeypatch.undo()
    assert len(llm.generate("a", GREEDY, use_tqdm=False)[0].outputs[0].token_ids) == 8


def test_the_progress_bar_counts_requests(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(["a", "b", "c"], GREEDY)
    shown = capsys.readouterr().err
    assert "3/3" in shown
    assert "output tok/s" in shown
    llm.generate(["a"], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_the_prefix_cache_is_used_and_can_be_reset(llm: LLM) -> None:
    prompt = "a long prompt that fills more than one block of the cache, to be sure"
    llm.reset_prefix_cache()
    hits = [llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens for _ in range(2)]
    assert hits[0] == 0
    assert hits[1]
    assert llm.reset_prefix_cache()
    assert llm.generate(prompt, GREEDY, use_tqdm=False)[0].num_cached_tokens == 0


def test_after_closing_nothing_is_served(checkpoint: Path) -> None:
    with load(checkpoint) as llm:
        pass
    with pytest.raises(EngineDeadError, match="closed"):
        llm.generate("a", GREEDY)


def constrained(**constraint: Any) -> SamplingParams:
    return SamplingParams(max_tokens=40, seed=1, structured_outputs=StructuredOutputsParams(**constraint))


@pytest.mark.promise("PAIN-2", "STRUCT-3")
def test_pain_2_a_grammar_that_would_crash_the_program_is_a_value_error(llm: LLM) -> None:
    chain = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(3_000)}
    absurd = {"$defs": {**chain, "d3000": {}}, "$ref": "#/$defs/d0"}
    with pytest.raises(ValueError, match=r"^The structured output cannot be enforced: it is too deep or too large"):
        llm.generate("x", constrained(json=absurd), use_tqdm=False)
    with pytest.raises(ValueError, match="unclosed group"):
        llm.generate("x", constrained(regex="(a"), use_tqdm=False)
    (output,) = llm.generate("x", constrained(regex="[ab]{3}c"), use_tqdm=False)
    assert re.fullmatch("[ab]{3}c", output.outputs[0].text)


def test_grammars_are_checked_in_a_process_that_lives_from_the_first_one_to_the_end(checkpoint: Path) -> None:
    this = psutil.Process()
    others = set(this.children())
    with load(checkpoint) as llm:
        llm.generate("x", GREEDY, use_tqdm=False)
        assert set(this.children()) <= others
        for pattern in ("a+", "b+"):
            llm.generate("x", constrained(regex=pattern), use_tqdm=False)
            (checker,) = set(this.children()) - others
    assert not checker.is_running()


@pytest.mark.promise("CONF-3")
def test_an_unknown_argument_is_refused_with_a_suggestion(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="max_model_len"):
        load(checkpoint, max_modl_len=10)


@pytest.mark.promise("TOOL-5")
def test_reasoning_can_be_limited_where_its_parser_is_named(llm: LLM, checkpoint: Path) -> None:
    params = GREEDY.clone(thinking_token_budget=2, max_tokens=40)
    with load(checkpoint, reasoning_parser="qwen3") as thinking:
        closing = thinking.get_tokenizer().encode("</think>", add_special_tokens=False)
        [output] = thinking.generate("Hm. <think>", params, use_tqdm=False)
    assert output.outputs[0].token_ids[2 : 2 + len(closing)] == closing
    with pytest.raises(InvalidRequestError, match="--reasoning-parser"):
        llm.generate("Hm. <think>", params, use_tqdm=False)
