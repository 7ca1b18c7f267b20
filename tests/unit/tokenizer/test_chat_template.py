from datetime import datetime, timezone
from pathlib import Path

import pytest
from jinja2 import TemplateError
from transformers import AutoTokenizer

from tests.unit.tokenizer.families import byte_level_bpe, save
from vllm_mxext.config.frontend import ChatTemplateConfig
from vllm_mxext.errors import ConfigError, InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.tokenizer.chat_template import ChatTemplates
from vllm_mxext.tokenizer.loading import load_tokenizer

CHATML = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].role == 'system' %}
        {{- messages[0].content + '\\n\\n' }}
    {%- endif %}
    {{- "# Tools\\n<tools>" }}
    {%- for tool in tools %}
        {{- "\\n" }}
        {{- tool | tojson }}
    {%- endfor %}
    {{- "\\n</tools><|im_end|>\\n" }}
{%- elif messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role == 'user' or (message.role == 'system' and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is defined and message.reasoning_content %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n\\n' }}
        {%- endif %}
        {%- if message.content %}{{- message.content }}{%- endif %}
        {%- for tool_call in message.tool_calls or [] %}
            {%- set tool_call = tool_call.function if tool_call.function else tool_call %}
            {{- '<tool_call>\\n{"name": "' + tool_call.name }}
            {{- '", "arguments": ' + (tool_call.arguments | tojson) + '}\\n</tool_call>' }}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""

LLAMA3 = """\
{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + system_message + "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not message['role'] in ['user', 'assistant', 'tool', 'ipython'] %}{% continue %}{% endif %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""

MISTRAL = """\
{{ bos_token }}
{%- for message in messages %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif %}
    {%- if message['role'] == 'user' %}
        {{- '[INST] ' + message['content'] + ' [/INST]' }}
    {%- else %}
        {{- ' ' }}{% generation %}{{ message['content'] + eos_token }}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""

PARTS = """\
{%- macro text(content) %}
    {%- for part in content %}
        {%- if part.type == 'text' %}{{ part.text }}{% else %}<{{ part.type }}>{% endif %}
    {%- endfor %}
{%- endmacro %}
{%- set ns = namespace(turn=0) %}
{%- for message in messages %}
    {%- set ns.turn = ns.turn + 1 %}
<turn {{ ns.turn }} {{ message.role }}>
{{ text(message.content) | trim }}
</turn>
{% endfor %}
"""

STRINGS_OR_PARTS = """\
{% for message in messages %}
{%- if message.content is string %}S:{{ message.content }}
{%- else %}{% for item in message['content'] %}P:{{ item['text'] }}{% endfor %}{% endif %}
{% endfor %}"""

REFUSED = "The chat template refused the messages: "

TEMPLATES = {
    "chatml": CHATML,
    "llama3": LLAMA3,
    "mistral": MISTRAL,
    "parts": PARTS,
    "strings_or_parts": STRINGS_OR_PARTS,
}

SYSTEM = {"role": "system", "content": "Antworte <b>kurz</b> & 'höflich'. "}
USER = {"role": "user", "content": "你好 {{ 1 + 1 }} 😀\n"}
ASSISTANT = {"role": "assistant", "content": "Hello  there \n"}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"q": '<ü> & "x"', "n": [1, None]}}}],
}
TOOL = {"role": "tool", "content": "42"}
THINKING = {"role": "assistant", "content": "yes", "reasoning": "hm"}
TOOLS = [{"type": "function", "function": {"name": "f", "description": "größer <x>", "parameters": {}}}]

CONVERSATIONS = {
    "one": [USER],
    "system": [SYSTEM, USER],
    "three": [USER, ASSISTANT, USER],
    "open": [USER, ASSISTANT],
    "tools": [SYSTEM, USER, CALL, TOOL, THINKING, USER],
}


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """Ours and transformers' tokenizer of the same folder, per template."""
    made = {}
    for name, template in TEMPLATES.items():
        config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "eos_token": "<|im_end|>"}
        folder = save(tmp_path_factory.mktemp(name), byte_level_bpe(), config, chat_template=template)
        made[name] = (load_tokenizer(folder), AutoTokenizer.from_pretrained(folder))
    return made


def as_parts(messages):
    return [m | {"content": [{"type": "text", "text": m["content"]}]} if m.get("content") else m for m in messages]


def text_or_error(tokenizer, messages, **arguments):
    try:
        return tokenizer.apply_chat_template(messages, **arguments)
    except (InvalidRequestError, TemplateError) as error:
        return str(error)


@pytest.mark.parametrize("prompted", [True, False])
@pytest.mark.parametrize("conversation", CONVERSATIONS)
@pytest.mark.parametrize("template", TEMPLATES)
def test_renders_as_transformers(both, template, conversation, prompted):
    ours, theirs = both[template]
    messages = CONVERSATIONS[conversation]
    kwargs = {"tools": TOOLS, "enable_thinking": False} if conversation == "tools" else {}
    given = as_parts(messages) if template == "parts" else messages
    expected = text_or_error(theirs, given, tokenize=False, add_generation_prompt=prompted, **kwargs)
    rendered = text_or_error(ours, messages, add_generation_prompt=prompted, template_kwargs=kwargs)
    assert expected in rendered if rendered.startswith(REFUSED) else rendered == expected


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("content", ["The answer is", "trailing space ", "line\n", "CONTINUE_FINAL_MESSAGE_TAG ha"])
def test_continues_the_final_message_as_transformers(both, template, content):
    ours, theirs = both[template]
    messages = [USER, {"role": "assistant", "content": content}]
    given = as_parts(messages) if template == "parts" else messages
    expected = theirs.apply_chat_template(given, tokenize=False, continue_final_message=True)
    rendered = ours.apply_chat_template(messages, add_generation_prompt=False, continue_final_message=True)
    assert rendered == expected
    assert rendered.rstrip().endswith(content.rstrip())


def test_tokens_of_a_rendered_chat_equal_those_of_transformers(both):
    ours, theirs = both["chatml"]
    messages = CONVERSATIONS["tools"]
    expected = theirs.apply_chat_template(messages, tools=TOOLS, add_generation_prompt=True)["input_ids"]
    text = ours.apply_chat_template(messages, template_kwargs={"tools": TOOLS})
    assert ours.encode(text, add_special_tokens=False) == expected


@pytest.mark.parametrize(
    ("source", "takes_parts"),
    [
        (CHATML, False),
        (LLAMA3, False),
        (PARTS, True),
        (STRINGS_OR_PARTS, True),
        ("{% for m in messages %}{% set c = m['content'] %}{% for p in c %}{{ p.text }}{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in m.content | selectattr('type') %}x{% endfor %}{% endfor %}", True),
        ("{% for m in messages[1:] %}{% for p in m.content[1:] %}x{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for p in (m.content if m.content else []) %}x{% endfor %}{% endfor %}", True),
        ("{% for m in messages %}{% for c in m.tool_calls %}{{ m.content }}{% endfor %}{% endfor %}", False),
    ],
)
def test_the_content_format_is_read_off_the_template(source, takes_parts):
    assert ChatTemplates({"default": source}, {}).content_format().takes_parts is takes_parts


def test_parts_are_joined_to_text_for_templates_that_want_text(both):
    ours, _ = both["chatml"]
    parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
    assert ours.apply_chat_template([{"role": "user", "content": parts}]) == ours.apply_chat_template(
        [{"role": "user", "content": "one\ntwo"}]
    )


def test_a_part_that_is_not_text_is_not_supported(both):
    ours, _ = both["chatml"]
    image = {"type": "image_url", "image_url": {"url": "http://x"}}
    with pytest.raises(UnsupportedFeatureError, match=r"messages\[0\].*image_url"):
        ours.apply_chat_template([{"role": "user", "content": [image]}])


@pytest.mark.parametrize("content", [3, {"text": "x"}, [3], [{"type": "text"}]])
def test_malformed_content_is_an_invalid_request(both, content):
    with pytest.raises(InvalidRequestError, match=r"messages\[0\]"):
        both["chatml"][0].apply_chat_template([{"role": "user", "content": content}])


def test_tool_call_arguments_are_given_to_the_template_as_an_object(both):
    ours, _ = both["chatml"]
    nothing = [(text, '"arguments": {}}') for text in ("not json", "", "[1]", "null", None, "[" * 100_000)]
    for text, expected in (('{"q": 1}', '"arguments": {"q": 1}}'), *nothing):
        call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": text}}]}
        assert expected in ours.apply_chat_template([USER, call])


def test_the_developer_role_becomes_system_unless_the_template_knows_it():
    templates = ChatTemplates({"default": "{{ messages[0].role }}", "own": "{{ messages[0].role == 'developer' }}"}, {})
    message = [{"role": "developer", "content": "x"}]
    assert templates.render(message) == "system"
    assert templates.render(message, chat_template="own") == "True"


def test_the_callers_messages_stay_as_they_are(both):
    messages = [{"role": "user", "content": "x", "name": None}, {"role": "assistant", "content": "y", "tool_calls": []}]
    copies = [dict(message) for message in messages]
    both["chatml"][0].apply_chat_template(messages, add_generation_prompt=False, continue_final_message=True)
    assert messages == copies


def test_named_templates_are_chosen_by_name_or_by_the_presence_of_tools(tmp_path):
    named = [{"name": name, "template": f"{name}{{{{ bos_token }}}}"} for name in ("default", "tool_use", "rag")]
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|begin|>", "chat_template": named}
    folder = save(tmp_path, byte_level_bpe(), config)
    ours, theirs = load_tokenizer(folder), AutoTokenizer.from_pretrained(folder)
    for kwargs, expected in (({}, "default<|begin|>"), ({"tools": TOOLS}, "tool_use<|begin|>")):
        assert ours.apply_chat_template([USER], template_kwargs=kwargs) == expected
        assert theirs.apply_chat_template([USER], tokenize=False, **kwargs) == expected
    assert ours.apply_chat_template([USER], chat_template="rag") == "rag<|begin|>"
    assert ours.apply_chat_template([USER], chat_template="{{ eos_token }}|") == "|"


def test_template_files_replace_those_of_the_configuration(tmp_path: Path):
    folder = save(tmp_path, byte_level_bpe(), {"chat_template": "old"}, chat_template="new")
    assert load_tokenizer(folder).apply_chat_template([USER]) == "new"
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "tool_use.jinja").write_text("tool")
    assert load_tokenizer(folder).apply_chat_template([USER], template_kwargs={"tools": TOOLS}) == "tool"


def test_without_a_template_chat_is_not_supported(checkpoints):
    tokenizer = load_tokenizer(checkpoints["llama2"])
    with pytest.raises(UnsupportedFeatureError, match="no chat template"):
        tokenizer.apply_chat_template([USER])


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "line 2"),
        ("\n\n{{ raise_exception('only users') }}", "only users.*line 3"),
        ("\n{{ messages[0].missing.deeper }}", "line 2"),
        ("{{ messages[0].content + 1 }}", "line 1"),
        ("{{ messages[0].__class__.__mro__ }}", "unsafe"),
        ("{% set ns = namespace(a=1) %}{% set ns.__class__ = 1 %}", "__class__"),
        ("{% set ns = namespace(_a=1) %}", "_a"),
        ("{{ messages.append(1) }}", "not callable|unsafe|append"),
        ("{% for i in range(100) %}{% for i in range(100000) %}{{ 'x' * 100 }}{% endfor %}{% endfor %}", "more than"),
    ],
)
def test_a_failing_template_is_an_invalid_request_that_says_where(source, message):
    with pytest.raises(InvalidRequestError, match=message):
        ChatTemplates({"default": source}, {}).render([USER])


@pytest.mark.parametrize("name", ["messages", "chat_template", "tokenize", "add_generation_prompt"])
def test_template_arguments_that_would_change_the_rendering_are_refused(both, name):
    with pytest.raises(InvalidRequestError, match=name):
        both["chatml"][0].apply_chat_template([USER], template_kwargs={name: True})


def test_contradicting_arguments_are_refused(both):
    ours, _ = both["chatml"]
    with pytest.raises(InvalidRequestError, match="exclude"):
        ours.apply_chat_template([USER], continue_final_message=True)
    with pytest.raises(InvalidRequestError, match="empty"):
        ours.apply_chat_template([])
    with pytest.raises(InvalidRequestError, match="content"):
        ours.apply_chat_template([USER, CALL], add_generation_prompt=False, continue_final_message=True)


def test_a_final_message_that_the_template_changes_cannot_be_continued():
    templates = ChatTemplates({"default": "{{ messages[0].content | upper }}"}, {})
    with pytest.raises(InvalidRequestError, match="continue_final_message"):
        templates.render([USER | {"content": "abc"}], add_generation_prompt=False, continue_final_message=True)


def test_dictionaries_and_namespaces_can_be_made():
    source = (
        "{% set d = dict(a=1) %}{% set n = namespace(self=2, b=d) %}{% set n.c = dict.fromkeys('xy', 3) %}"
        "{{ d, n.b, n.c, n.self }}"
    )
    assert ChatTemplates({"default": source}, {}).render([USER]) == "({'a': 1}, {'a': 1}, {'x': 3, 'y': 3}, 2)"


@pytest.mark.promise("CHAT-2")
def test_an_operator_chooses_template_content_format_and_variables():
    config = ChatTemplateConfig("rag", "string", {"a": 1, "b": 2, "unused": 3})
    named = {"default": "d", "tool_use": "t", "rag": "{{ a }}{{ b }}{% for m in messages %}{{ m.content }}{% endfor %}"}
    templates = ChatTemplates(named, {}, config)
    parts = [{"role": "user", "content": [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]}]

    assert templates.render(parts, template_kwargs={"b": 5, "tools": TOOLS}) == "15x\ny"
    assert templates.render(parts, content_format="openai") == f"12{parts[0]['content']}"
    assert templates.render(parts, chat_template="default") == "d"


@pytest.mark.promise("CHAT-2")
@pytest.mark.parametrize(("given", "message"), [("nope", "tool_use"), ("{% if %}", "line 1")])
def test_an_operators_template_that_cannot_be_used_is_a_wrong_configuration(given, message):
    with pytest.raises(ConfigError, match=f"--chat-template.*{message}"):
        ChatTemplates({"tool_use": "t"}, {}, ChatTemplateConfig(given))


@pytest.mark.promise("CHAT-2")
def test_families_that_all_have_one_template_get_it_if_the_checkpoint_has_none(tmp_path):
    folder = save(tmp_path, byte_level_bpe(), {})
    (folder / "config.json").write_text('{"model_type": "qwen2"}')
    expected = "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert load_tokenizer(folder).apply_chat_template([{"role": "user", "content": "hi"}]) == expected
    (folder / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedFeatureError, match="no chat template"):
        load_tokenizer(folder).apply_chat_template([USER])


@pytest.mark.promise("PAIN-6")
def test_pain_6_a_template_without_the_bos_of_the_tokenizer_is_warned_of_once(tmp_path, checkpoints, caplog):
    tokenizer = load_tokenizer(checkpoints["llama3"], ChatTemplateConfig("{{ messages[0].content }}"))
    with caplog.at_level("WARNING"):
        assert [tokenizer.apply_chat_template([{"role": "user", "content": "hi"}]) for _ in range(2)] == ["hi", "hi"]
    assert caplog.text.count("does not begin with <|begin|>") == 1


def test_the_date_comes_from_the_given_clock():
    templates = ChatTemplates(
        {"default": "{{ strftime_now('%d %b %Y') }}"}, {}, now=lambda: datetime(2024, 7, 26, tzinfo=timezone.utc)
    )
    assert templates.render([USER]) == "26 Jul 2024"
