"""`LLM` with the adapters that ship with the built-in model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from vllm_mxext import LLM, BeamSearchParams, LoRARequest, SamplingParams, builtin
from vllm_mxext.errors import AdapterConflictError, AdapterError, InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.outputs import RequestOutput

pytestmark = pytest.mark.promise("LORA-14")
GREEDY = SamplingParams(temperature=0.0, max_tokens=12)
FOLDER = builtin.model_path().parent / "adapters"
CODE = LoRARequest("code", 1, str(FOLDER / "code_tuned"))
MATH = LoRARequest("math", 2, str(FOLDER / "math_tuned"))
PROMPTS = ["The capital of France is", "def add(a, b):", "12 * 11 ="]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(enable_lora=True, max_loras=2, num_threads=1, dtype="float32", max_num_seqs=8) as llm:
        yield llm


def texts(outputs: list[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def test_each_prompt_gets_the_adapter_that_is_named_for_it(llm: LLM) -> None:
    alone = {
        lora: texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=lora)) for lora in (None, CODE, MATH)
    }
    assert len({tuple(found) for found in alone.values()}) == 3, "adapters change the answers"
    loras = [lora for lora in (CODE, None, MATH) for _ in PROMPTS]
    mixed = llm.generate(PROMPTS * 3, GREEDY, use_tqdm=False, lora_request=loras)
    assert texts(mixed) == alone[CODE] + alone[None] + alone[MATH]
    assert [output.lora_request for output in mixed] == loras
    assert [output.outputs[0].lora_request for output in mixed] == loras


def test_chats_streams_and_searches_take_adapters(llm: LLM) -> None:
    messages = [{"role": "user", "content": "What is 3 plus 4?"}]
    assert llm.chat(messages, GREEDY, use_tqdm=False, lora_request=MATH)[0].lora_request == MATH
    streamed = "".join(output.outputs[0].text for output in llm.stream(PROMPTS[1], GREEDY, lora_request=[CODE]))
    assert streamed == texts(llm.generate(PROMPTS[1], GREEDY, use_tqdm=False, lora_request=CODE))[0]
    params = BeamSearchParams(1, max_tokens=6, ignore_eos=True)
    base, tuned = llm.beam_search([PROMPTS[2]] * 2, params, lora_request=[None, CODE])
    assert [found.sequences[0].lora_request for found in (base, tuned)] == [None, CODE]
    greedy = GREEDY.clone(max_tokens=6, ignore_eos=True)
    (output,) = llm.generate(PROMPTS[2], greedy, use_tqdm=False, lora_request=CODE)
    assert tuned.sequences[0].tokens == [*output.prompt_token_ids, *output.outputs[0].token_ids]


def test_a_list_of_another_length_is_refused(llm: LLM) -> None:
    with pytest.raises(InvalidRequestError, match="lora_request must have one entry per prompt: 1 for 3"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=[CODE])
    with pytest.raises(InvalidRequestError, match="lora_request must have one entry per prompt"):
        llm.beam_search(PROMPTS, BeamSearchParams(2), lora_request=[CODE])


def test_a_number_stands_for_one_path_unless_it_is_loaded_in_place(llm: LLM) -> None:
    llm.generate(PROMPTS[0], GREEDY, use_tqdm=False, lora_request=CODE)
    moved = LoRARequest("code", 1, MATH.lora_path)
    with pytest.raises(AdapterConflictError, match="load_inplace=True"):
        llm.generate(PROMPTS[0], GREEDY, use_tqdm=False, lora_request=moved)
    in_place = LoRARequest("code", 1, MATH.lora_path, load_inplace=True)
    replaced = llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=in_place)
    assert texts(replaced) == texts(llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=MATH))
    back = LoRARequest("code", 1, CODE.lora_path, load_inplace=True)
    llm.generate(PROMPTS[0], GREEDY, use_tqdm=False, lora_request=back)


def test_what_is_not_there_is_said(llm: LLM) -> None:
    with pytest.raises(AdapterError, match="/no/such/adapter"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=LoRARequest("none", 9, "/no/such/adapter"))
    assert 9 not in llm.engine.list_loras()
    with pytest.raises(AdapterError, match="null character"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=LoRARequest("none", 9, "a\0b"))


@pytest.mark.parametrize("wrong", ["math", 5, ["math"], {"lora_name": "math"}])
def test_what_is_no_lora_request_is_refused(llm: LLM, wrong: Any) -> None:
    with pytest.raises(InvalidRequestError, match="must be a LoRARequest or a list of them"):
        llm.generate(PROMPTS[0], GREEDY, use_tqdm=False, lora_request=wrong)


def test_an_engine_without_adapters_says_how_to_get_them() -> None:
    with LLM(num_threads=1) as llm, pytest.raises(UnsupportedFeatureError, match="enable_lora=True"):
        llm.generate(PROMPTS, GREEDY, use_tqdm=False, lora_request=CODE)
