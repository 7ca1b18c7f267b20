"""The sandbox in which chat templates run: transformers' dialect of Jinja, with limits on time and size."""

from __future__ import annotations

import functools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from typing import Any, NoReturn

import jinja2
import jinja2.exceptions
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.runtime
import jinja2.utils
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from vllm_mxext.tokenizer.template_limits import (
    TemplateLimitError,
    check_format,
    check_length,
    check_operator,
    check_text,
    checked_arguments,
    guarded_filters,
)

RENDER_TIME_LIMIT_S = 10.0
"""Computing time of one rendering; a clock that stands still while the machine does something else."""

_WIDE_TIME = re.compile(r"%[^%a-zA-Z]*[0-9]{3,}")
_LONGEST_TIME = 32
"""Characters that `strftime` makes of two, about."""


class _GenerationTag(jinja2.ext.Extension):
    """`{% generation %}...{% endgeneration %}` marks assistant text for training; it renders its body."""

    tags = {"generation"}  # noqa: RUF012 (as jinja2 declares it)

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return jinja2.nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


class _Watch(jinja2.ext.Extension):
    """What compiled templates call at every turn of a loop and every call of a macro."""

    identifier = "watch"

    def __init__(self, environment: jinja2.Environment) -> None:
        super().__init__(environment)
        self._thread = threading.local()

    def begin(self, limit_s: float) -> None:
        """Starts the clock of the calling thread."""
        self._thread.deadline_s = time.thread_time() + limit_s

    def tick(self) -> None:
        """Ends a rendering that has used up its time."""
        if time.thread_time() > self._thread.deadline_s:
            raise TemplateLimitError("it computes for too long")

    def join(self, *parts: Any) -> str:
        """The `~` operator."""
        check_text(parts)
        return "".join(map(str, parts))


class _Guard(NodeTransformer):
    """Puts the calls of the watch into a template's syntax tree."""

    def __init__(self, watch: _Watch) -> None:
        self._watch = watch

    def visit_For(self, node: jinja2.nodes.For) -> jinja2.nodes.Node:  # noqa: N802 - names that jinja2 looks for
        return self._with_tick(node)

    def visit_Macro(self, node: jinja2.nodes.Macro) -> jinja2.nodes.Node:  # noqa: N802
        return self._with_tick(node)

    def visit_Concat(self, node: jinja2.nodes.Concat) -> jinja2.nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return self._watch.call_method("join", node.nodes, lineno=node.lineno)

    def _with_tick(self, node: jinja2.nodes.For | jinja2.nodes.Macro) -> jinja2.nodes.Node:
        self.generic_visit(node)
        tick = jinja2.nodes.ExprStmt(self._watch.call_method("tick", lineno=node.lineno), lineno=node.lineno)
        node.body.insert(0, tick)
        return node


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and renders chat templates; safe to use from several threads.

    Args:
        now: local time for `strftime_now`.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_checked_output,
            extensions=[_GenerationTag, jinja2.ext.loopcontrols, _Watch],
        )
        self.filters = guarded_filters({**self.filters, "tojson": _to_json})
        self.globals["raise_exception"] = _raise_exception
        self.globals["dict"] = _TemplateDict()
        self.globals["namespace"] = _TemplateNamespace
        self.globals["strftime_now"] = lambda time_format: now().strftime(_checked_time(time_format))
        del self.globals["lipsum"]  # as long as it is told to
        watch = self.extensions[_Watch.identifier]
        assert isinstance(watch, _Watch)
        self._watch = watch

    def compile_guarded(self, source: str) -> jinja2.Template:
        """Compiles a template so that the watch sees its loops."""
        tree = _Guard(self._watch).visit(self.parse(source))
        tree.set_environment(self)
        return self.from_string(tree)

    def render(self, template: jinja2.Template, variables: Mapping[str, Any], limit_s: float) -> str:
        """Renders piece by piece, so that a template that writes without end is stopped.

        Raises:
            TemplateLimitError: it takes too long or writes too much.
        """
        self._watch.begin(limit_s)
        pieces: list[str] = []
        num_chars = 0
        for piece in template.generate(variables):
            pieces.append(piece)
            num_chars += len(piece)
            check_length(num_chars)
        return "".join(pieces)

    @staticmethod
    def concat(pieces: Iterable[str]) -> str:
        """Joins what blocks and macros have written."""
        texts = list(pieces)
        check_length(sum(map(len, texts)))
        return "".join(texts)

    def call(self, context: jinja2.runtime.Context, function: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Calls a function after a look at how large its result will be."""
        return super().call(context, function, *checked_arguments(function, args, kwargs), **kwargs)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Returns what stands for a `str.format` method, or None for anything else."""
        method = super().wrap_str_format(value)
        if method is None:
            return None

        @functools.wraps(method)
        def checked(*args: Any, **kwargs: Any) -> str:
            check_format(value.__self__, args, kwargs)
            return method(*args, **kwargs)

        return checked

    def call_binop(self, context: jinja2.runtime.Context, operator: str, left: Any, right: Any) -> Any:
        """Computes an operator after a look at how large the result will be."""
        check_operator(operator, left, right)
        return super().call_binop(context, operator, left, right)


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


def _checked_output(value: Any) -> Any:
    """Looks at what is about to be written as text."""
    if not isinstance(value, str):
        check_text(value)
    return value


def _checked_time(time_format: str) -> str:
    if _WIDE_TIME.search(time_format):
        raise TemplateLimitError("it formats a text that is too wide")
    check_length(len(time_format) * _LONGEST_TIME)
    return time_format


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
