"""`mxext hub doctor`: what keeps models from being downloaded and started, each with its remedy."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vllm_mxext.cli.findings import report
from vllm_mxext.cli.hub_commands.asking import Asked, read
from vllm_mxext.cli.hub_commands.parsing import add_choice, command_parser
from vllm_mxext.findings import Finding
from vllm_mxext.hub.doctor.examination import Patient, examine
from vllm_mxext.hub.doctor.source_checks import asking_once, connecting_probe, impatient
from vllm_mxext.hub.exit_codes import DONE, FAILED


def doctor(argv: Sequence[str]) -> int:
    """Prints findings; the code says if there is a problem."""
    parser = command_parser(
        "doctor",
        "Find what keeps models from being downloaded and started: permissions, disk, locks, manifests, tokens, "
        "sources, packages, drivers. With a model, what that one needs. With --offline nobody is asked.",
    )
    add_choice(parser)
    asked = read(parser, argv)
    found = report(_findings(asked))
    asked.answer(found.value, found.text)
    return DONE if found.is_well else FAILED


def _findings(asked: Asked) -> list[Finding]:
    network = asked.config.network
    if network.is_offline:
        return examine(Patient(asked.app, asked.config, asked.hardware(), probe=None))
    network = impatient(network)
    probe = connecting_probe(network, asked.config.revision)
    with asking_once():
        return examine(Patient(asked.app, replace(asked.config, network=network), asked.hardware(), probe))
