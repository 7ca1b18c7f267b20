"""The shipped artefacts have the promised form: size, layout, template, tokenizer."""

import json

import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

from training.tokenizer import load_template
from vllm_mxext.builtin import BUILTIN_MODEL_NAME, adapter_names, adapter_path, model_path

TOOL = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module")
def template():
    return load_template(model_path() / "chat_template.jinja")


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_file(str(model_path() / "tokenizer.json"))


def read_json(name):
    return json.loads((model_path() / name).read_text(encoding="utf-8"))


@pytest.mark.promise("MODEL-5")
def test_the_weights_are_at_most_eight_megabytes_of_bfloat16():
    path = model_path() / "model.safetensors"
    assert path.stat().st_size <= 8_000_000
    with safe_open(path, framework="pt") as weights:
        assert {weights.get_slice(name).get_dtype() for name in weights.keys()} == {"BF16"}  # noqa: SIM118


def test_the_configuration_is_a_llama_that_ends_turns_and_documents(tokenizer):
    config, generation = read_json("config.json"), read_json("generation_config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["vocab_size"] == tokenizer.get_vocab_size()
    assert config["head_dim"] % 16 == 0
    assert config["max_position_embeddings"] >= 2048
    assert generation["eos_token_id"] == [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]


@pytest.mark.parametrize("text", ["Hello, world!", "2x + 5 = 13", "法国的首都", "naïve 🦊 \u0000 \t ﷽", "a  b\n\n c"])
def test_the_tokenizer_gives_any_text_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_every_digit_is_its_own_token(tokenizer):
    assert [tokenizer.decode([i]) for i in tokenizer.encode("12345").ids] == list("12345")


def test_the_template_writes_turns_and_asks_for_an_answer(template):
    messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    assert template.render(messages=messages, add_generation_prompt=True) == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_template_shows_tools_calls_and_results(template):
    call = {"type": "function", "function": {"name": "get_time", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "user", "content": "Time?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "12:00"},
    ]
    text = template.render(messages=messages, tools=[TOOL])
    assert json.dumps(TOOL) in text
    assert '<tool_call>\n{"name": "get_time", "arguments": {"city": "Oslo"}}\n</tool_call><|im_end|>' in text
    assert "<tool_response>\n12:00\n</tool_response>" in text


def test_the_template_takes_arguments_as_a_json_string_too(template):
    call = {"function": {"name": "add", "arguments": '{"a": 1}'}}
    text = template.render(messages=[{"role": "assistant", "content": "", "tool_calls": [call]}])
    assert '{"name": "add", "arguments": {"a": 1}}' in text


def test_both_adapters_fit_the_model():
    assert adapter_names() == ("code_tuned", "math_tuned")
    hidden = read_json("config.json")["hidden_size"]
    for name in adapter_names():
        config = json.loads((adapter_path(name) / "adapter_config.json").read_text(encoding="utf-8"))
        assert config["base_model_name_or_path"] == BUILTIN_MODEL_NAME
        with safe_open(adapter_path(name) / "adapter_model.safetensors", framework="pt") as weights:
            first = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
            assert weights.get_slice(first).get_shape() == [config["r"], hidden]


def test_an_unknown_adapter_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="code_tuned, math_tuned"):
        adapter_path("poetry_tuned")
