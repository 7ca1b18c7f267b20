"""Rendering conversations with Jinja chat templates, with the results of transformers' `apply_chat_template`."""

from __future__ import annotations

import functools
import json
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.meta
import jinja2.nodes
import jinja2.parser
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm_mxext.errors import InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.tokenizer.content_format import ContentFormat, detect_content_format, prepare_messages

MAX_RENDERED_CHARS = 32 * 1024 * 1024
"""Longest prompt text a template may render, in characters."""

_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_NUM_CACHED_TEMPLATES = 32
_RESERVED_VARIABLES = frozenset({
    "messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "padding", "truncation",
    "max_length",
})  # fmt: skip


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _TemplateDict:
    """The `dict` of templates: it makes dictionaries without handing out the type."""

    def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
        return dict(*args, **kwargs)

    def fromkeys(self, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        return dict.fromkeys(keys, value)


class _TemplateNamespace(jinja2.utils.Namespace):
    """The `namespace` of templates: without attributes that begin with an underscore, which could reach internals."""

    def __init__(*args: Any, **kwargs: Any) -> None:  # so that `namespace(self=...)` works
        values = dict(*args[1:], **kwargs)
        for name in values:
            _refuse_private(name)
        jinja2.utils.Namespace.__init__(args[0], values)

    def __setitem__(self, name: str, value: Any) -> None:
        _refuse_private(name)
        super().__setitem__(name, value)


def _refuse_private(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise jinja2.exceptions.SecurityError(f"a namespace must not have the attribute {name!r}")


@dataclass(frozen=True, slots=True)
class _CompiledTemplate:
    source: str
    template: jinja2.Template
    variables: frozenset[str]
    content_format: ContentFormat


class ChatTemplates:
    """The chat templates of a model; safe to use from several threads.

    Args:
        templates: name -> Jinja source; `default` is the usual one, `tool_use` the one for requests with tools.
        variables: what every template sees besides the conversation, such as `bos_token`.
        now: local time for `strftime_now`.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        variables: Mapping[str, str],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self._templates = dict(templates)
        self._variables = dict(variables)
        self._environment = _environment(now)
        self._compile = functools.lru_cache(maxsize=_NUM_CACHED_TEMPLATES)(self._compile_uncached)

    def content_format(self, chat_template: str | None = None) -> ContentFormat:
        """The content format of a template, chosen as `render` does."""
        return self._compile(self._choose(chat_template, has_tools=False)).content_format

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders a conversation; see `HfTokenizer.apply_chat_template`.

        Raises:
            InvalidRequestError: a bad argument, or the template refused the conversation.
            UnsupportedFeatureError: there is no template.
        """
        kwargs = dict(template_kwargs or {})
        _check_arguments(messages, kwargs, add_generation_prompt, continue_final_message)
        compiled = self._compile(self._choose(chat_template, has_tools=kwargs.get("tools") is not None))
        prepared = prepare_messages(messages, compiled.content_format)
        final_text = _tag_final_message(prepared, compiled.source) if continue_final_message else None
        used = {name: value for name, value in kwargs.items() if name in compiled.variables}
        rendered = _render(
            compiled.template,
            {
                "tools": None,
                "documents": None,
                **self._variables,
                **used,
                "messages": prepared,
                "add_generation_prompt": add_generation_prompt,
            },
        )
        return rendered if final_text is None else _cut_at_tag(rendered, final_text)

    def _choose(self, chat_template: str | None, *, has_tools: bool) -> str:
        if chat_template is not None:
            return self._templates.get(chat_template, chat_template)
        if has_tools and "tool_use" in self._templates:
            return self._templates["tool_use"]
        if "default" in self._templates:
            return self._templates["default"]
        if self._templates:
            names = ", ".join(sorted(self._templates))
            raise UnsupportedFeatureError(
                f"The model has no default chat template; name one of {names}.", param="chat_template"
            )
        raise UnsupportedFeatureError(
            "The model has no chat template; start the server with --chat-template or use completions.",
            param="messages",
        )

    def _compile_uncached(self, source: str) -> _CompiledTemplate:
        try:
            tree = self._environment.parse(source)
            template = self._environment.from_string(source)
        except jinja2.TemplateSyntaxError as error:
            raise InvalidRequestError(
                f"The chat template has an error in line {error.lineno}: {error.message}", param="chat_template"
            ) from error
        variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        return _CompiledTemplate(source, template, variables, detect_content_format(tree))


def _check_arguments(
    messages: Sequence[Mapping[str, Any]],
    kwargs: Mapping[str, Any],
    add_generation_prompt: bool,
    continue_final_message: bool,
) -> None:
    if not messages:
        raise InvalidRequestError("messages must not be empty.", param="messages")
    if add_generation_prompt and continue_final_message:
        raise InvalidRequestError(
            "add_generation_prompt and continue_final_message exclude each other.", param="continue_final_message"
        )
    reserved = sorted(_RESERVED_VARIABLES.intersection(kwargs))
    if reserved:
        raise InvalidRequestError(
            f"chat_template_kwargs must not set {', '.join(reserved)}.", param="chat_template_kwargs"
        )


def _environment(now: Callable[[], datetime]) -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, jinja2.ext.loopcontrols]
    )
    environment.filters["tojson"] = _to_json
    environment.globals["raise_exception"] = _raise_exception
    environment.globals["dict"] = _TemplateDict()
    environment.globals["namespace"] = _TemplateNamespace
    environment.globals["strftime_now"] = lambda time_format: now().strftime(time_format)
    return environment


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without Jinja's HTML escapes."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _render(template: jinja2.Template, variables: dict[str, Any]) -> str:
    """Renders piece by piece, so that the size limit ends a template that writes without end."""
    pieces: list[str] = []
    num_chars = 0
    try:
        for piece in template.generate(variables):
            pieces.append(piece)
            num_chars += len(piece)
            if num_chars > MAX_RENDERED_CHARS:
                break
    except Exception as error:  # a template can raise anything: it computes with whatever the request holds
        line = _template_line(error)
        where = "" if line is None else f" (chat template, line {line})"
        raise InvalidRequestError(
            f"The chat template refused the messages: {error}{where}", param="messages"
        ) from error
    if num_chars > MAX_RENDERED_CHARS:
        raise InvalidRequestError(
            f"The chat template renders more than {MAX_RENDERED_CHARS} characters; shorten the messages.",
            param="messages",
        )
    return "".join(pieces)


def _template_line(error: Exception) -> int | None:
    """Line of the template in which an error arose; Jinja rewrites tracebacks to show it."""
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename in ("<template>", "<unknown>")
    ]
    return lines[-1] if lines else None


def _tag_final_message(messages: list[dict[str, Any]], source: str) -> str:
    """Appends the tag at which the rendered text is cut to the last message; returns the message's own text."""
    content = messages[-1].get("content")
    if content is None:
        raise InvalidRequestError("continue_final_message needs a last message with content.", param="messages")
    if "content" not in source:
        raise InvalidRequestError(
            "continue_final_message does not work with this chat template: it does not use the content of messages.",
            param="continue_final_message",
        )
    if isinstance(content, str):
        messages[-1]["content"] = content + _CONTINUE_TAG
        return content
    if not content:
        raise InvalidRequestError("continue_final_message needs a last message with text.", param="messages")
    text = str(content[-1]["text"])
    content[-1]["text"] = text + _CONTINUE_TAG
    return text


def _cut_at_tag(rendered: str, final_text: str) -> str:
    tag = _CONTINUE_TAG.strip()
    if final_text.strip() not in rendered or tag not in rendered:
        raise InvalidRequestError(
            "continue_final_message does not work with this conversation: the chat template does not write the last "
            "message as it is.",
            param="continue_final_message",
        )
    position = rendered.rindex(tag)
    if rendered[position : position + len(_CONTINUE_TAG)] == _CONTINUE_TAG:
        return rendered[:position]
    # The template trimmed the message's end, and with it what the message itself ends with.
    return rendered[:position].rstrip()
