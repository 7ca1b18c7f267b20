"""What models of each family write, after the formats' published examples, and what it means."""

# ruff: noqa: E501 - one example a line

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

_CITY = {"city": "San José, “CA” \\ 😀"}
_NESTED = {"city": 'a "b"\n{c}', "limits": {"low": [1, -2.5e3, {"x": None}], "ok": True}}


@dataclass(frozen=True)
class Example:
    """A text and the message that it stands for."""

    parser: str
    text: str
    calls: tuple[tuple[str, Any], ...] = ()
    content: str = ""
    reasoning: str = ""
    ids: tuple[str | None, ...] = ()


def call(name: str = "get_weather", **arguments: Any) -> tuple[str, Any]:
    return name, arguments


_J1 = '{"name": "get_weather", "arguments": {"city": "San José, “CA” \\\\ 😀"}}'
_J2 = '{"name": "get_weather", "arguments": {"city": "a \\"b\\"\\n{c}", "limits": {"low": [1, -2.5e3, {"x": null}], "ok": true}}}'
_J3 = '{"name": "get_time", "arguments": {}}'
_C1, _C2, _C3 = call(**_CITY), call(**_NESTED), call("get_time")

JSON_EXAMPLES = (
    Example("hermes", f"<tool_call>\n{_J1}\n</tool_call>", (_C1,)),
    Example("hermes", f"Sure.\n<tool_call>\n{_J2}\n</tool_call>\n<tool_call>{_J3}</tool_call>\nDone.", (_C2, _C3), "Sure.\nDone."),
    Example("hermes", f"<tool_call>{_J1}\n{_J3}</tool_call>", (_C1, _C3)),
    Example("hermes", "a < b <tool> <tool_cal", content="a < b <tool> <tool_cal"),
    Example("hermes", "<tool_call>\nnot JSON\n</tool_call>", content="<tool_call>\nnot JSON\n</tool_call>"),
    Example("hermes", '<tool_call>{"name": "get_w', content='<tool_call>{"name": "get_w'),
    Example("hermes", '<tool_call>{"name": "get_time"}</tool_call>', (_C3,)),
    Example("hermes", '<tool_call>{"arguments": {"city": "x"}, "name": "get_weather"}</tool_call>', (call(city="x"),)),
    Example("hermes", '<tool_call>{"name": "get_weather", "arguments": "{\\"city\\": \\"x\\"}"}</tool_call>', (call(city="x"),)),
    Example("hermes", '<tool_call>{"name": "get_weather", "arguments": {"city": "x"}</tool_call>', (call(city="x"),)),
    Example("hermes", '<tool_call>{"name": "get_time", "arguments": null}</tool_call>', (_C3,)),
    Example("hermes", '<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>', content='<tool_call>{"name": "get_time", "arguments": [1]}</tool_call>'),
    Example("hermes", '<tool_call>{"name": "unknown", "arguments": {"path": "C:\\dir\\file\tx"}}</tool_call>', (call("unknown", path="C:\\dir\file\tx"),)),
    Example("llama3_json", '{"name": "get_weather", "parameters": {"city": "x"}}', (call(city="x"),)),
    Example("llama3_json", f'<|python_tag|>{_J2}; {{"name": "get_time", "parameters": {{}}}}', (_C2, _C3)),
    Example("llama3_json", f"Well:\n<|python_tag|>{_J1}", (_C1,), "Well:"),
    Example("llama3_json", '{"city": "x", "name": "y"}', content='{"city": "x", "name": "y"}'),
    Example("llama3_json", ' {"name": "Bob", "age": 7}\n', content=' {"name": "Bob", "age": 7}\n'),
    Example("llama3_json", "<|python_tag|>brave_search.call(query=\"x\")", content="<|python_tag|>brave_search.call(query=\"x\")"),
    Example("mistral", f"[TOOL_CALLS] [{_J1}, {_J3}]", (_C1, _C3)),
    Example("mistral", f"Let me see.[TOOL_CALLS][{_J2}]", (_C2,), "Let me see."),
    Example("mistral", '[TOOL_CALLS]get_weather[ARGS]{"city": "x"}[TOOL_CALLS]get_time[ARGS]{}', (call(city="x"), _C3), ids=(None, None)),
    Example("mistral", 'Hm[TOOL_CALLS]get_weather{"city": "x"}', (call(city="x"),), "Hm"),
    Example("mistral", '[TOOL_CALLS]get_time[CALL_ID]abc123DEF[ARGS]{}', (_C3,), ids=("abc123DEF",)),
    Example("mistral", "[TOOL_CALLS] I cannot.", content="[TOOL_CALLS] I cannot."),
    Example("mistral", "[TOOL] [1, 2]", content="[TOOL] [1, 2]"),
    Example("granite", f"<|tool_call|>[{_J1}, {_J3}]", (_C1, _C3)),
    Example("granite", f"<tool_call>[{_J2}]", (_C2,)),
    Example("granite", f"[{_J3}]", (_C3,)),
    Example("granite", f"Yes.\n<tool_call>\n{_J1}\n</tool_call>", (_C1,), "Yes."),
    Example("granite", "[1, 2, 3] are numbers.", content="[1, 2, 3] are numbers."),
    Example("internlm", f"I need help.<|action_start|><|plugin|>\n{_J2}<|action_end|>\n", (_C2,), "I need help."),
    Example("internlm", '<|action_start|><|plugin|>{"name": "get_time", "parameters": {}}<|action_end|>', (_C3,)),
    Example("internlm", "<|action_start|><|interpreter|>print(1)<|action_end|>", content="<|action_start|><|interpreter|>print(1)<|action_end|>"),
    Example("jamba", f" <tool_calls>[\n    {_J1},\n    {_J3}\n]</tool_calls>", (_C1, _C3)),
    Example("jamba", f"Fine.<tool_calls>[{_J2}]</tool_calls>", (_C2,), "Fine."),
    Example("jamba", "<tool_calls>[]</tool_calls>", content="<tool_calls>[]</tool_calls>"),
    Example("phi4_mini_json", f"functools[{_J1}, {_J2}]", (_C1, _C2)),
    Example("phi4_mini_json", 'functools[{"name": "get_time", "parameters": {}}]', (_C3,)),
    Example("phi4_mini_json", "Python's functools [is] a module.", content="Python's functools [is] a module."),
    Example("xlam", f"[{_J1}, {_J2}]", (_C1, _C2)),
    Example("xlam", f"Here:\n```json\n[{_J3}]\n```\nOk?", (_C3,), "Here:\nOk?"),
    Example("xlam", f"<tool_call>[{_J1}]</tool_call>", (_C1,)),
    Example("xlam", f"[TOOL_CALLS][{_J1}]", (_C1,)),
    Example("xlam", "```python\nx = [1]\n```\n", content="```python\nx = [1]\n```\n"),
    Example("json", _J1, (_C1,)),
    Example("json", f" [{_J2},{_J3}]", (_C2, _C3)),
    Example("json", '```json\n{"name": "get_weather", "parameters": {"city": "x"}}\n```', (call(city="x"),)),
    Example("json", '{"name": "Bob", "arguments": {"x": 1}}', content='{"name": "Bob", "arguments": {"x": 1}}'),
    Example("json", '{"answer": [1, 2]}', content='{"answer": [1, 2]}'),
)  # fmt: skip

MARKED_EXAMPLES = (
    Example("deepseek_v3", "Let me.\n<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n{\"city\": \"x\"}\n```<｜tool▁call▁end｜>\n<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>", (call(city="x"), _C3), "Let me."),
    Example("deepseek_v3", "<｜tool▁calls▁begin｜>oh", content="<｜tool▁calls▁begin｜>oh"),
    Example("deepseek_v3", "A ```json\n{}\n``` block", content="A ```json\n{}\n``` block"),
    Example("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{\"city\": \"``` \\u00e9\"}<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜> Done", (call(city="``` é"), _C3), "Done"),
    Example("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜><｜tool▁call▁end｜><｜tool▁calls▁end｜>", (_C3,)),
    Example("deepseek_v31", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>[]<｜tool▁call▁end｜>", content="<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>[]<｜tool▁call▁end｜>"),
    Example("kimi_k2", 'I look.<|tool_calls_section_begin|><|tool_call_begin|>functions.get_weather:0<|tool_call_argument_begin|>{"city": "x"}<|tool_call_end|><|tool_call_begin|> get_time:1 <|tool_call_argument_begin|> {} <|tool_call_end|><|tool_calls_section_end|>', (call(city="x"), _C3), "I look.", ids=("functions.get_weather:0", "get_time:1")),
    Example("kimi_k2", "<|tool_calls_section_begin|><|tool_call_begin|>get_time<|tool_call_argument_begin|>{}<|tool_call_end|>", content="<|tool_calls_section_begin|><|tool_call_begin|>get_time<|tool_call_argument_begin|>{}<|tool_call_end|>"),
    Example("gemma", "<start_function_call>call:get_weather{city:<escape>{x}, <b> \"é\"<escape>,days:3,metric:true,limits:{low:-1.5,names:[<escape>a<escape>,null]}}<end_function_call>", (call(city='{x}, <b> "é"', days=3, metric=True, limits={"low": -1.5, "names": ["a", None]}),)),
    Example("gemma", "Ok.<start_function_call>call:get_time{}<end_function_call><start_function_call>call:get_weather{city:Paris}<end_function_call>", (_C3, call(city="Paris")), "Ok."),
    Example("gemma", "<start_function_call>get_time<end_function_call>", content="<start_function_call>get_time<end_function_call>"),
    Example("gemma4", "Let me look. <|tool_call>call:get_weather{city:<|\"|>{x}, <b> \"é\"<|\"|>,days:3,metric:true,limits:{low:-1.5,<|\"|>3<|\"|>:[<|\"|>a]b<|\"|>,null]}}<tool_call|><|tool_call>call:get_time{}<tool_call|>", (call(city='{x}, <b> "é"', days=3, metric=True, limits={"low": -1.5, "3": ["a]b", None]}), _C3), "Let me look."),
    Example("gemma4", "<|tool_call>call:get-weather.v2{city:Paris , share:3.14,hours:[[1],2]}<tool_call|>", (call("get-weather.v2", city="Paris", share=3.14, hours=[[1], 2]),)),
    Example("gemma4", "<|tool_call>get_time<tool_call|> <|tool", content="<|tool_call>get_time<tool_call|> <|tool"),
    Example("pythonic", "[get_weather(city='San \\'José\\'', days=2, limits={'a': [1, None], \"b\": False}, share=.5), get_time()]", (call(city="San 'José'", days=2, limits={"a": [1, None], "b": False}, share=0.5), _C3)),
    Example("pythonic", "[get_weather(city=\"a\\nb \\u00e9 \\U0001f600 \\x41 \\d\",\n  hours=[1, 2,],)]", (call(city="a\nb é 😀 A \\d", hours=[1, 2]),)),
    Example("pythonic", "[1] says: [get_time()]", content="[1] says: [get_time()]"),
    Example("pythonic", "[get_weather('x')]", content="[get_weather('x')]"),
    Example("pythonic", "[see](http://x)", content="[see](http://x)"),
    Example("llama4_pythonic", "<|python_start|>[get_time(), get_weather(city='x')]<|python_end|>", (_C3, call(city="x"))),
    Example("llama4_pythonic", " [get_time()]", (_C3,)),
    Example("llama4_pythonic", "<|python_start|>print(1)<|python_end|>", content="<|python_start|>print(1)<|python_end|>"),
)  # fmt: skip

_TAGGED = """<tool_call>
<function=get_weather>
<parameter=city>
{city}
</parameter>
<parameter=days>
3
</parameter>
<parameter=metric>
True
</parameter>
<parameter=limits>
{{"low": [1, {{"x": null}}]}}
</parameter>
<parameter=hours>
['a', 2]
</parameter>
<parameter=share>
5.0
</parameter>
<parameter=note>
null
</parameter>
<parameter=other>
7
</parameter>
</function>
</tool_call>"""
_TYPED = {"days": 3, "metric": True, "limits": {"low": [1, {"x": None}]}, "hours": ["a", 2], "share": 5.0, "note": None}

TAGGED_EXAMPLES = (
    Example("qwen3_coder", "I will.\n\n" + _TAGGED.format(city='line 1\n\n\tif a < b: "é"'), (call(city='line 1\n\n\tif a < b: "é"', **_TYPED, other="7"),), "I will."),
    Example("qwen3_coder", "<tool_call>\n<function=get_time>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nx\n</parameter>\n</function>\n</tool_call>", (_C3, call(city="x"))),
    Example("qwen3_coder", "<function=get_weather>\n<parameter=city>\nx\n<parameter=days>\n1\n</function>\n</tool_call>", (call(city="x", days=1),)),
    Example("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=city>\nin <parameter=a>b</parameter> tags\n</parameter>\n</function>\n</tool_call>", (call(city="in <parameter=a>b</parameter> tags"),)),
    Example("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=limits>\n{\"a\\\"\": \"</parameter></function>\"}\n</parameter>\n</function>\n</tool_call>", (call(limits={'a"': "</parameter></function>"}),)),
    Example("qwen3_coder", "<tool_call>\n<function=get_weather>\n<parameter=limits>\n{\"a\": \"b}\n</parameter>\n<parameter=days>\n3\n</parameter>\n</function>\n</tool_call>", (call(limits='{"a": "b}', days=3),)),
    Example("minimax_m2", "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"hours\">[\"</parameter> </invoke>\"]</parameter>\n<parameter name=\"limits\">{\"a\": \"b}</parameter>\n</invoke>\n</minimax:tool_call>", (call(hours=["</parameter> </invoke>"], limits='{"a": "b}'),)),
    Example("qwen3_coder", "<tool_call>hello</tool_call> <function> <functions", content="<tool_call>hello</tool_call> <function> <functions"),
    Example("qwen3_coder", "<tool_call>\n<function=f>oops</function>\n</tool_call>", content="<tool_call>\n<function=f>oops</function>\n</tool_call>"),
    Example("glm45", "Now.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>1</arg_value>\n<arg_key>days</arg_key>\n<arg_value>3</arg_value>\n<arg_key>other</arg_key>\n<arg_value>{\"a\": [true]}</arg_value>\n<arg_key>more</arg_key>\n<arg_value>x \"y\"\nz</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>", (call(city="1", days=3, other={"a": [True]}, more='x "y"\nz'), _C3), "Now."),
    Example("glm45", "<tool_call>get_weather<arg_key>city</arg_key><arg_value>x</arg_value></tool_call>", (call(city="x"),)),
    Example("glm45", "<tool_call>two words</tool_call>", content="<tool_call>two words</tool_call>"),
    Example("minimax_m2", "<minimax:tool_call>\n<invoke name=\"get_weather\">\n<parameter name=\"city\">San José</parameter>\n<parameter name=\"days\">3</parameter>\n<parameter name=\"note\">None</parameter>\n<parameter name='limits'>{\"a\": [1]}</parameter>\n</invoke>\n<invoke name=\"get_time\">\n</invoke>\n</minimax:tool_call>", (call(city="San José", days=3, note=None, limits={"a": [1]}), _C3)),
    Example("deepseek_v32", 'I look.\n\n<｜DSML｜function_calls>\n<｜DSML｜invoke name="get_weather">\n<｜DSML｜parameter name="city" string="true">杭州 "<b>"\n1</｜DSML｜parameter>\n<｜DSML｜parameter name="days" string="false">3</｜DSML｜parameter>\n<｜DSML｜parameter name="limits" string="false">{"low": [1, {"x": null}]}</｜DSML｜parameter>\n<｜DSML｜parameter name="other" string="true">7</｜DSML｜parameter>\n<｜DSML｜parameter name="more" string="false">[true]</｜DSML｜parameter>\n</｜DSML｜invoke>\n<｜DSML｜invoke name="get_time">\n\n</｜DSML｜invoke>\n</｜DSML｜function_calls>', (call(city='杭州 "<b>"\n1', days=3, limits={"low": [1, {"x": None}]}, other="7", more=[True]), _C3), "I look."),
    Example("deepseek_v32", '<｜DSML｜function_calls><｜DSML｜invoke name="get_weather">\n{"city": "x", "days": 2}\n</｜DSML｜invoke></｜DSML｜function_calls>', (call(city="x", days=2),)),
    Example("deepseek_v32", '<｜DSML｜function_calls><｜DSML｜invoke name="get_weather"><｜DSML｜parameter name="city">in </｜DSML｜parameter> tags</｜DSML｜parameter></｜DSML｜invoke></｜DSML｜function_calls>', (call(city="in </｜DSML｜parameter> tags"),)),
    Example("deepseek_v32", "<｜DSML｜function_calls> <function_calls>", content="<｜DSML｜function_calls> <function_calls>"),
    Example("minimax_m2", "Hi <minimax:tool_call>\nno", content="Hi <minimax:tool_call>\nno"),
)  # fmt: skip

HARMONY_EXAMPLES = (
    Example("openai", "<|channel|>analysis<|message|>User wants weather.<|end|><|start|>assistant<|channel|>commentary<|message|>I will look.<|end|><|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>{\"city\": \"x\"}<|call|>", (call(city="x"),), "I will look.", "User wants weather."),
    Example("openai", "<|channel|>final<|message|>Hello!\n<|return|>", content="Hello!\n"),
    Example("openai", " to=functions.get_time<|channel|>commentary json<|message|>{}<|call|><|start|>assistant to=functions.get_time<|channel|>commentary<|message|><|call|>", (_C3, _C3)),
    Example("openai", "<|channel|>analysis<|message|>A<|end|><|start|>assistant<|channel|>analysis<|message|>B<|channel|>final<|message|>C", content="C", reasoning="A\n\nB"),
    Example("openai", "<|channel|>commentary to=python code<|message|>print(1)<|call|>", reasoning="print(1)"),
    Example("openai", "Just text, a <| b.", content="Just text, a <| b."),
    Example("openai", "<|channel|>commentary to=functions.get_time<|message|>now<|call|>", content="<|channel|>commentary to=functions.get_time<|message|>now"),
)  # fmt: skip

EXAMPLES = (*JSON_EXAMPLES, *MARKED_EXAMPLES, *TAGGED_EXAMPLES, *HARMONY_EXAMPLES)

FRAGMENTS = {
    "any": ('{"name": "get_weather", "arguments": ', '{"city": "x"}', "}", "{}", "get_time", '"', "\n", "text", "[", "]", ","),
    "hermes": ("<tool_call>", "</tool_call>", "<tool_call>\n", "<tool"),
    "llama3_json": ("<|python_tag|>", ";", '"parameters": ', "<|python"),
    "llama4_pythonic": ("<|python_start|>", "<|python_end|>", "(", ")", "days=", "'a'", "None", "{'a': 1}"),
    "pythonic": ("(", ")", "days=", "'a'", "None", "{'a': 1}", "[get_time()", "get_weather(city='x'"),
    "mistral": ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "[TOOL_CALLS]get_time[ARGS]{}", "[TOOL"),
    "qwen3_coder": ("<tool_call>", "</tool_call>", "<function=", ">", "<function=f>", "</function>", "<parameter=city>", "</parameter>", "\n<parameter="),
    "deepseek_v3": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "function<｜tool▁sep｜>", "get_time\n```json\n", "\n```", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<｜tool"),
    "deepseek_v31": ("<｜tool▁calls▁begin｜>", "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>", "<｜tool"),
    "kimi_k2": ("<|tool_calls_section_begin|>", "<|tool_call_begin|>", "functions.get_time:0", "<|tool_call_argument_begin|>", "<|tool_call_end|>", "<|tool_calls_section_end|>"),
    "glm45": ("<tool_call>", "</tool_call>", "<tool_call>get_time\n", "<arg_key>", "days", "</arg_key>", "<arg_value>", "3", "</arg_value>"),
    "granite": ("<|tool_call|>", "<tool_call>", "</tool_call>", "<|tool"),
    "internlm": ("<|action_start|><|plugin|>", "<|action_end|>", "<|action_start|>"),
    "jamba": ("<tool_calls>", "</tool_calls>", "<tool_"),
    "phi4_mini_json": ("functools", "functools[", "func"),
    "xlam": ("```json", "```", "[TOOL_CALLS]", "<tool_call>", "</tool_call>"),
    "minimax_m2": ("<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="get_weather">', "</invoke>", '<parameter name="days">', "</parameter>", "3"),
    "gemma": ("<start_function_call>", "call:get_weather{", "<escape>", "city:", "days:3", "<end_function_call>", "<start_"),
    "gemma4": ("<|tool_call>", "call:get_weather{", '<|"|>', "city:", "days:3", "<tool_call|>", "<|tool"),
    "deepseek_v32": ("<｜DSML｜function_calls>", '<｜DSML｜invoke name="get_weather">', '<｜DSML｜parameter name="days" string="false">', '<｜DSML｜parameter name="city" string="true">', "3", "</｜DSML｜parameter>", "</｜DSML｜invoke>", "</｜DSML｜function_calls>", "<｜DSML"),
    "openai": ("<|channel|>", "analysis", "final", "commentary to=functions.get_time", "<|message|>", "<|end|>", "<|call|>", "<|start|>assistant", "<|return|>"),
    "json": ("```json", "```", '"parameters": ', '{"name": "get_time"'),
}  # fmt: skip
"""Parser -> pieces of its format, to make nonsense of."""
