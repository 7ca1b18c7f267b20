"""Writes docs/chat_templates.md from a comparison with transformers: `python docs/make_template_table.py`."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.template_conformance import CONVERSATIONS, Comparison, Conformance, template_names

TARGET = Path(__file__).parent / "chat_templates.md"

INTRODUCTION = """\
# Chat templates

<!-- Written by docs/make_template_table.py from tests/chat_templates; a test keeps it in step. -->

A conversation becomes a prompt by a Jinja template: that of `--chat-template` (a file, the template itself, or the
name of one of the tokenizer's such as `tool_use`), else the tokenizer's (`chat_template.jinja`,
`additional_chat_templates/`, `tokenizer_config.json`; `tool_use` for requests with tools), else a built-in one for
families whose models all have the same (Qwen), else the request is refused.

- Content is given to the template as text or as a list of parts, whichever its loops ask for;
  `--chat-template-content-format string` or `openai` overrides that.
- `chat_template_kwargs` of a request and `--default-chat-template-kwargs` set variables; those that the template does
  not use are dropped. `reasoning_effort` also sets `enable_thinking`, unless that is given.
- Arguments of tool calls reach the template as objects; empty lists of calls and fields that are null do not reach it.
  The role `developer` becomes `system` for templates that do not know it. Reasoning is there as `reasoning_content` and
  as `thinking`.
- Templates run in a sandbox, with limits on computing time, length and size of numbers; an error is the request's
  (400) and names the template's line. Templates in requests need `--trust-request-chat-template`.
- BOS comes from the template alone. If it writes none although the tokenizer does so for plain text, a warning says so.
  A text that begins with BOS does not get a second one.

## Comparison with transformers

Templates that imitate the published ones with the same constructs, each with the same {conversations} conversations
(system and developer messages, tools, calls, results, reasoning, documents, parts, a continued message): text and
tokens must be equal to those of `apply_chat_template`, or both must refuse.

| template | content | equal | refused by both | different | BOS tokens |
|---|---|---|---|---|---|
"""


def render(comparisons: Sequence[Comparison]) -> str:
    """Returns the whole page."""
    rows = [
        f"| {one.name} | {'parts' if one.is_parts else 'text'} | {one.num_equal} | {one.num_refused} "
        f"| {len(one.differences)} | {one.num_bos} |\n"
        for one in comparisons
    ]
    num_equal, num_refused = sum(one.num_equal for one in comparisons), sum(one.num_refused for one in comparisons)
    num_different = sum(len(one.differences) for one in comparisons)
    total = f"| **{len(comparisons)} templates** | | {num_equal} | {num_refused} | {num_different} | |\n"
    return INTRODUCTION.replace("{conversations}", str(len(CONVERSATIONS))) + "".join(rows) + total


def main() -> None:
    """Writes the page."""
    with tempfile.TemporaryDirectory() as folder:
        conformance = Conformance(Path(folder))
        page = render([conformance.compare(name) for name in template_names()])
    TARGET.write_text(page, encoding="utf-8")
    sys.stdout.write(f"{TARGET}\n")


if __name__ == "__main__":
    main()
