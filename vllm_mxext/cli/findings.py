"""The output of `mxext hub doctor` and `mxext server doctor`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from vllm_mxext.cli.tables import counted
from vllm_mxext.findings import Finding, Level

_SIGNS = {Level.OK: "ok", Level.WARNING: "warning", Level.PROBLEM: "PROBLEM"}


class Report(NamedTuple):
    """Findings to be printed.

    Attributes:
        is_well: there is no problem.
        value: for `--json`.
        text: for people.
    """

    is_well: bool
    value: dict[str, Any]
    text: str


def report(findings: Sequence[Finding]) -> Report:
    """Returns what to print of findings."""
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    is_well = counts[Level.PROBLEM] == 0
    entries, lines = [], []
    for one in findings:
        entries.append({"level": one.level.value, "subject": one.subject, "text": one.text, "remedy": one.remedy})
        lines.append(f"{_SIGNS[one.level]:<8} {one.subject}: {one.text}")
        lines += [f"{'':<8} -> {one.remedy}"] if one.remedy else []
    lines.append(f"{counted(counts[Level.PROBLEM], 'problem')}, {counted(counts[Level.WARNING], 'warning')}.")
    return Report(is_well, {"ok": is_well, "findings": entries}, "\n".join(lines))
