"""Chat templates that compute or write without end are stopped before it hurts; usual ones are left alone."""

from __future__ import annotations

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from vllm_mxext.errors import InvalidRequestError
from vllm_mxext.tokenizer.chat_template import ChatTemplates

USER = {"role": "user", "content": "hello\n"}

BUSY = {
    "loops": "{% for i in range(9999) %}{% for j in range(9999) %}{% endfor %}{% endfor %}",
    "macros": "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "recursion": "{% for x in [1] recursive %}{% if loop.depth < 60 %}{{ loop([1, 1]) }}{% endif %}{% endfor %}",
    "power": "{{ 9 ** 999999999 }}",
    "product": "{% set n = namespace(v=9) %}{% for i in range(99) %}{% set n.v = n.v * n.v %}{% endfor %}",
    "repeat": "{{ 'x' * 99999999999 }}",
    "repeat list": "{{ [1] * 99999999999 }}",
    "doubling": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = n.v + n.v %}{% endfor %}",
    "joining": "{% set n = namespace(v='x') %}{% for i in range(99) %}{% set n.v = n.v ~ n.v %}{% endfor %}",
    "format": "{{ '%99999999999d' % 1 }}",
    "format filter": "{{ '%99999999999d' | format(1) }}",
    "format star": "{{ '%*d' | format(99999999999, 1) }}",
    "format method": "{{ '{:99999999999}'.format(1) }}",
    "format map": "{{ '{a:>99999999999}'.format_map({'a': 1}) }}",
    "format width": "{{ '{:{w}}'.format(1, w='99999999999') }}",
    "format parts": "{{ ('%s' * 99999) % ((messages[0].content * 99999,) * 99999) }}",
    "format fields": "{{ ('{0}' * 99999).format('x' * 9999) }}",
    "ljust": "{{ 'x'.ljust(99999999999) }}",
    "rjust": "{{ 'x'.rjust(99999999999, 'y') }}",
    "center": "{{ 'x'.center(99999999999) }}",
    "zfill": "{{ 'x'.zfill(99999999999) }}",
    "bytes": "{{ 'x'.encode().ljust(99999999999) }}",
    "number to bytes": "{{ (1).to_bytes(99999999999, 'big') }}",
    "number to bytes by name": "{{ (1).to_bytes(byteorder='big', length=99999999999) }}",
    "by attribute": "{{ ('x' | attr('ljust'))(99999999999) }}",
    "expandtabs": "{{ ('\t' * 9999).expandtabs(99999999) }}",
    "replace": "{{ ('x' * 99999).replace('x', 'y' * 99999) }}",
    "replace filter": "{{ ('x' * 99999) | replace('x', 'y' * 99999) }}",
    "translate": "{{ ('x' * 99999).translate({120: 'y' * 99999}) }}",
    "join": "{{ ('x' * 99999).join(['y'] * 99999) }}",
    "join generator": "{{ ('x' * 99999).join((['y'] * 99999) | map('upper')) }}",
    "join filter": "{{ (['y'] * 99999) | join('x' * 99999) }}",
    "join of a generator": "{{ (['y'] * 99999) | map('upper') | join('x' * 99999) }}",
    "join of equals": "{{ (['y' * 99999] * 99999) | join }}",
    "text of equals": "{{ ['y' * 99999] * 99999 }}",
    "text of a dictionary": "{{ dict.fromkeys(range(99999), 'y' * 99999) }}",
    "text of values": "{{ dict.fromkeys(range(99999), 'y' * 99999).values() }}",
    "text of doublings": (
        "{% set n = namespace(v=0) %}{% for i in range(99) %}{% set n.v = [n.v, n.v] %}{% endfor %}{{ n.v }}"
    ),
    "list of new texts": "{{ (['x'] * 99999) | map('replace', 'x', 'y' * 99999) | list }}",
    "mapped": "{{ ['x'] | map('center', 99999999999) | list }}",
    "center filter": "{{ 'x' | center(99999999999) }}",
    "indent": "{{ ('x\n' * 9999) | indent(99999999) }}",
    "indent with text": "{{ ('x\n' * 9999) | indent('y' * 99999) }}",
    "wordwrap": "{{ ('x ' * 9999) | wordwrap(1, wrapstring='y' * 99999) }}",
    "batch": "{{ 'x' | batch(99999999999, 'y') | list }}",
    "slice": "{{ 'x' | slice(99999999999) | list }}",
    "sum": "{{ ([['x'] * 99999] * 99999) | sum(start=[]) }}",
    "round": "{{ 1.5 | round(99999999999, 'ceil') }}",
    "JSON": "{{ (['x' * 99999] * 99999) | tojson }}",
    "JSON indent": "{{ ([1] * 99999) | tojson(indent=99999) }}",
    "JSON separators": "{{ ([1] * 99999) | tojson(separators=('x' * 99999, ':')) }}",
    "concatenation": "{{ (['y' * 99999] * 99999) ~ 'x' }}",
    "macro": "{% macro f() %}{% for i in range(99) %}{{ 'x' * 9999999 }}{% endfor %}{% endmacro %}{% set y = f() %}",
    "block": "{% set y %}{% for i in range(99) %}{{ 'x' * 9999999 }}{% endfor %}{% endset %}",
    "time": "{{ strftime_now('%99999999999d') }}",
}


@pytest.mark.promise("CHAT-2")
@pytest.mark.parametrize("source", BUSY.values(), ids=BUSY)
def test_a_template_that_computes_without_end_is_stopped(source):
    templates = ChatTemplates({"default": source}, {}, time_limit_s=0.05)
    with pytest.raises(InvalidRequestError, match=r"too long|too large|too wide|more than"):
        templates.render([USER])


def test_nonsense_text_cannot_be_asked_for():
    with pytest.raises(InvalidRequestError, match="lipsum"):
        ChatTemplates({"default": "{{ lipsum(99999999) }}"}, {}).render([USER])


def test_the_limits_leave_usual_templates_alone():
    source = (
        "{% for i in range(3) recursive %}{{ i ~ '/' ~ loop.length ~ loop.index }}{% if loop.depth < 2 %}"
        "{{ loop([i * 2]) }}{% endif %}{% else %}none{% endfor %}{{ 2 ** 10 + 3 * 'ab'|length }}{{ 'ab' * 2 }}"
        "{{ [1] + [2] }}{{ '%s=%d' % ('n', 5) }}{{ '{:>5}|{a}'.format('x', a=[1]) }}{{ '{a}'.format_map({'a': 'é'}) }}"
        "{{ 'a'.ljust(4) ~ 'b'.center(5, '-') ~ 'c'.rjust(3) ~ '7'.zfill(3) ~ 'a\tb'.expandtabs(4) }}"
        "{{ 'a,b'.replace(',', ';') ~ '-'.join(['x', 'y']) ~ 'ab'.translate({97: 'A'}) ~ 'a b'.split() }}"
        "{{ ', '.join(['a', 'b'] | map('upper')) ~ 'b\\tc'.expandtabs() }}"
        "{{ ['a', 'b'] | map('upper') | join(', ') }}{{ ['a', 'b'] | join(d='+') }}{{ 'ab' | join('-') }}"
        "{{ 'x\ny' | indent(2, true) }}{{ 'x' | center(3) }}{{ 'a b c' | wordwrap(1) }}{{ '%s!' | format('x') }}"
        "{{ [1, 2, 3] | batch(2, 0) | list }}{{ [1, 2, 3] | slice(2) | list }}{{ [1, 2] | sum }}{{ 1.26 | round(1) }}"
        "{{ [[1], [2]] | sum(start=[]) }}{{ {'a': 1}.items() | list }}{{ {'b': 2} | dictsort }}"
        "{{ nothing | default('d') }}{{ 'x' | replace('x', 'y', 1) }}"
        "{{ [{'a': 1}, {'a': 2}] | selectattr('a', 'eq', 2) | list }}{{ (1, none, true) }}"
    )
    plain = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    assert ChatTemplates({"default": source}, {}).render([USER]) == plain.from_string(source).render()
