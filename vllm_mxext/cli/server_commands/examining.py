"""`mxext server doctor`: what is wrong with registered servers, each with its remedy."""

from __future__ import annotations

import argparse

from vllm_mxext.cli.hub_commands.tables import counted
from vllm_mxext.cli.server_commands.answer import Answer
from vllm_mxext.registry.doctor import Level, examine
from vllm_mxext.registry.errors import DONE, FAILED
from vllm_mxext.registry.servers import Servers

_SIGNS = {Level.OK: "ok", Level.WARNING: "warning", Level.PROBLEM: "PROBLEM"}


def doctor(servers: Servers, _arguments: argparse.Namespace) -> Answer:
    """Prints findings; the code says if there is a problem."""
    findings = examine(servers)
    counts = {level: sum(finding.level is level for finding in findings) for level in Level}
    is_well = counts[Level.PROBLEM] == 0
    lines = []
    for finding in findings:
        lines.append(f"{_SIGNS[finding.level]:<8} {finding.subject}: {finding.text}")
        lines += [f"{'':<8} -> {finding.remedy}"] if finding.remedy else []
    lines.append(f"{counted(counts[Level.PROBLEM], 'problem')}, {counted(counts[Level.WARNING], 'warning')}.")
    value = {
        "ok": is_well,
        "findings": [
            {"level": one.level.value, "subject": one.subject, "text": one.text, "remedy": one.remedy}
            for one in findings
        ],
    }
    return Answer(value, "\n".join(lines), DONE if is_well else FAILED)
