"""`mxext server doctor`: what is wrong with registered servers, each with its remedy."""

from __future__ import annotations

import argparse

from vllm_mxext.cli.findings import report
from vllm_mxext.cli.server_commands.answer import Answer
from vllm_mxext.registry.doctor import examine
from vllm_mxext.registry.errors import DONE, FAILED
from vllm_mxext.registry.servers import Servers


def doctor(servers: Servers, _arguments: argparse.Namespace) -> Answer:
    """Reports findings; the exit code says whether there is a problem."""
    found = report(examine(servers))
    return Answer(found.value, found.text, DONE if found.is_well else FAILED)
