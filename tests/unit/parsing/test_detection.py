"""Chat templates are known by what they write."""

from __future__ import annotations

import pytest

from vllm_mxext.parsing.detection import detect_parsers
from vllm_mxext.parsing.registry import ParserRegistry

TEMPLATES = {
    "qwen2.5": ("<|im_start|> ... <tool_call>\\n{\"name\": ", "hermes", None),
    "qwen3": ("<|im_start|> ... <tool_call> ... enable_thinking ... '<think>\\n\\n</think>\\n\\n'", "hermes", "qwen3"),
    "qwen3-coder": ("<|im_start|> ... <tool_call>\\n<function=' + name + '>\\n' '<parameter='", "qwen3_coder", None),
    "llama3.1": ("<|start_header_id|> ... {\"name\": function name, \"parameters\": dictionary", "llama3_json", None),
    "llama3.1 official": ("<|start_header_id|> ... \"<|python_tag|>\" + tool_call.name", "llama3_json", None),
    "llama3.2 pythonic": ("[func_name1(params_name1=params_value1...)]", "pythonic", None),
    "llama4 pythonic": ("<|header_start|> ... [func_name1(param1=value1)]", "llama4_pythonic", None),
    "mistral": ("[INST] ... [TOOL_CALLS] [", "mistral", None),
    "magistral": ("[INST] ... [THINK] ... [/THINK] ... [TOOL_CALLS]name[ARGS]", "mistral", "mistral"),
    "deepseek v3": ("<｜Assistant｜><｜tool▁calls▁begin｜> + '\\n' + '```json' + '\\n'", "deepseek_v3", None),
    "deepseek r1": ("<｜Assistant｜><think>\\n ... <｜tool▁calls▁begin｜> ... '```json'", "deepseek_v3", "deepseek_r1"),
    "deepseek v3.1": ("<｜Assistant｜></think> ... <｜tool▁calls▁begin｜>", "deepseek_v31", "deepseek_r1"),
    "kimi k2": ("<|im_assistant|> ... <|tool_calls_section_begin|>", "kimi_k2", None),
    "kimi k2 thinking": ("<|tool_calls_section_begin|> ... <think></think>", "kimi_k2", "kimi_k2"),
    "glm 4.5": ("<|assistant|> ... <think></think> ... <tool_call> ... <arg_key>", "glm45", "glm45"),
    "granite 3.2": ("<|start_of_role|> ... <|tool_call|> ... Write your thought process", "granite", "granite"),
    "granite 4": ("<|start_of_role|> ... <tool_call>", "granite", None),
    "internlm": ("<|im_start|> ... <|action_start|><|plugin|>", "internlm", None),
    "jamba": ("<tool_calls>[", "jamba", None),
    "hunyuan": ("<|startoftext|> ... <|extra_4|> ... <tool_calls>[ ... <think>\\n\\n</think>", "jamba", "hunyuan"),
    "phi 4 mini": ("<|tool|>' + tools + '<|/tool|>", "phi4_mini_json", None),
    "xlam": ("[{\"name\": \"tool_call_name\", \"arguments\": {\"arg1\"", "xlam", None),
    "minimax m2": ("]~b]ai ... <minimax:tool_call> ... <think>", "minimax_m2", "minimax_m2"),
    "functiongemma": ("<start_of_turn> ... <start_function_call>call:", "gemma", None),
    "gemma 4": ("<|turn>model ... '<|channel>thought\\n' ... '<|tool_call>call:' + name", "gemma4", "gemma4"),
    "deepseek v3.2": ("<｜Assistant｜><think> ... <｜DSML｜function_calls>", "deepseek_v32", "deepseek_r1"),
    "gpt-oss": ("<|start|>assistant<|channel|>analysis<|message|>", "openai", "openai_gptoss"),
    "chatml": ("<|im_start|>{{ role }}", None, None),
    "smollm3": ("<|im_start|> ... <think>", None, "qwen3"),
    "other": ("{{ bos }} <think>", None, "generic"),
}  # fmt: skip


@pytest.mark.parametrize("family", TEMPLATES)
@pytest.mark.promise("PARSE-4")
def test_a_template_suggests_the_parsers_of_its_family(family: str) -> None:
    template, tool_parser, reasoning_parser = TEMPLATES[family]
    found = detect_parsers(template)
    assert (found.tool_parser, found.reasoning_parser) == (tool_parser, reasoning_parser)
    registry = ParserRegistry()
    if found.tool_parser:
        registry.tool_parser(found.tool_parser)
    if found.reasoning_parser:
        registry.reasoning_parser(found.reasoning_parser)
