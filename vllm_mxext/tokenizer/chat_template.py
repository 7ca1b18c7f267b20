"""Rendering conversations with Jinja chat templates, with the results of transformers' `apply_chat_template`."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import jinja2
import jinja2.meta

from vllm_mxext.config.frontend import ChatTemplateConfig, ContentFormatName
from vllm_mxext.errors import ConfigError, InvalidRequestError, UnsupportedFeatureError
from vllm_mxext.tokenizer.content_format import ContentFormat, detect_content_format, prepare_messages
from vllm_mxext.tokenizer.template_environment import RENDER_TIME_LIMIT_S, TemplateEnvironment

_CONTINUE_TAG = "CONTINUE_FINAL_MESSAGE_TAG "
_NUM_CACHED_TEMPLATES = 32
_RESERVED_VARIABLES = frozenset({
    "messages", "conversation", "chat_template", "tokenize", "add_generation_prompt", "continue_final_message",
    "return_tensors", "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs", "padding", "truncation",
    "max_length",
})  # fmt: skip


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
        config: the operator's choice of template, content format and variables.
        now: local time for `strftime_now`.
        time_limit_s: computing time of one rendering.

    Raises:
        ConfigError: the operator's template has an error, or is the name of one that the model does not have.
    """

    def __init__(
        self,
        templates: Mapping[str, str],
        variables: Mapping[str, str],
        config: ChatTemplateConfig | None = None,
        now: Callable[[], datetime] = datetime.now,
        time_limit_s: float = RENDER_TIME_LIMIT_S,
    ) -> None:
        self._templates = dict(templates)
        self._variables = dict(variables)
        self._config = config or ChatTemplateConfig()
        self._time_limit_s = time_limit_s
        self._environment = TemplateEnvironment(now)
        self._compile = functools.lru_cache(maxsize=_NUM_CACHED_TEMPLATES)(self._compile_uncached)
        self._check_configured()

    def content_format(self, chat_template: str | None = None) -> ContentFormat:
        """The content format of a template, chosen as `render` does."""
        return self._compile(self._choose(chat_template, has_tools=False)).content_format

    def source(self, *, has_tools: bool = False) -> str | None:
        """The template used unless a request brings one, or None if there is none."""
        try:
            return self._choose(None, has_tools=has_tools)
        except UnsupportedFeatureError:
            return None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        continue_final_message: bool = False,
        chat_template: str | None = None,
        content_format: ContentFormatName | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> str:
        """Renders a conversation; see `HfTokenizer.apply_chat_template`.

        Raises:
            InvalidRequestError: a bad argument, or the template refused the conversation.
            UnsupportedFeatureError: there is no template.
        """
        kwargs = {**self._config.kwargs, **(template_kwargs or {})}
        _check_arguments(messages, kwargs, add_generation_prompt, continue_final_message)
        compiled = self._compile(self._choose(chat_template, has_tools=kwargs.get("tools") is not None))
        wanted = compiled.content_format.overridden(content_format or self._config.content_format)
        prepared = prepare_messages(messages, wanted)
        final_text = _tag_final_message(prepared, compiled.source) if continue_final_message else None
        used = {name: value for name, value in kwargs.items() if name in compiled.variables}
        variables = {
            "tools": None,
            "documents": None,
            **self._variables,
            **used,
            "messages": prepared,
            "add_generation_prompt": add_generation_prompt,
        }
        rendered = self._render(compiled.template, variables)
        return rendered if final_text is None else _cut_at_tag(rendered, final_text)

    def _render(self, template: jinja2.Template, variables: Mapping[str, Any]) -> str:
        try:
            return self._environment.render(template, variables, self._time_limit_s)
        except Exception as error:  # a template can raise anything: it computes with whatever the request holds
            line = _template_line(error)
            where = "" if line is None else f" (chat template, line {line})"
            raise InvalidRequestError(
                f"The chat template refused the messages: {error}{where}", param="messages"
            ) from error

    def _choose(self, chat_template: str | None, *, has_tools: bool) -> str:
        chosen = self._config.chat_template if chat_template is None else chat_template
        if chosen is not None:
            return self._templates.get(chosen, chosen)
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

    def _check_configured(self) -> None:
        given = self._config.chat_template
        if given is None:
            return
        if given not in self._templates and not any(mark in given for mark in ("{{", "{%", "\n")):
            names = ", ".join(sorted(self._templates)) or "none"
            raise ConfigError(
                f"--chat-template '{given}' is no file, and no template of the model, which has: {names}."
            )
        try:
            self._compile(self._choose(None, has_tools=False))
        except InvalidRequestError as error:
            raise ConfigError(f"--chat-template cannot be used: {error}") from error

    def _compile_uncached(self, source: str) -> _CompiledTemplate:
        try:
            tree = self._environment.parse(source)
            template = self._environment.compile_guarded(source)
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
