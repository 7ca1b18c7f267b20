"""`mxext hub list-profiles`, `select`, `explain` and `hardware`: what could run here, what would, and why."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import replace

from vllm_mxext.cli.hub_commands.asking import Asked, read
from vllm_mxext.cli.hub_commands.parsing import add_choice, command_parser
from vllm_mxext.cli.hub_commands.serve_command import serve_command
from vllm_mxext.cli.tables import columns, counted
from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.errors import HubCause
from vllm_mxext.hub.as_json import manifest_as_json, model_as_json
from vllm_mxext.hub.entries import FoundModel
from vllm_mxext.hub.exit_codes import DONE, code_of
from vllm_mxext.hub.explain import as_dict, judgement_dict, table
from vllm_mxext.hub.explain import explain as explanation
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Selection
from vllm_mxext.hub.manifest.lookup import find_manifest
from vllm_mxext.hub.startup import choose, rank_profiles


def list_profiles(argv: Sequence[str]) -> int:
    """Prints the profiles of a model, or all models of the manifest with their best ones."""
    parser = command_parser(
        "list-profiles",
        "Print the profiles of a model and what each would be on this machine; without a model, all models of the "
        "manifest with their best profile.",
    )
    add_choice(parser)
    parser.add_argument("--all", action="store_true", help="all models, although MIM_MODEL_NAME names one")
    asked = read(parser, argv)
    hardware = asked.hardware()
    if asked.app.model.model is None or asked.own.all:
        _list_models(asked, hardware)
        return DONE
    found = asked.find()
    selection = rank_profiles(asked.app, asked.config, found, hardware)
    asked.answer(_facts(found, selection, hardware), table(selection))
    return DONE


def _list_models(asked: Asked, hardware: Hardware) -> None:
    manifest = find_manifest(asked.config, asked.environ)
    rows, values = [("model", "parameters", "best profile", "state", "description")], []
    for entry in manifest.models:
        config = replace(asked.config, profile=None)  # one of another model
        selection = rank_profiles(asked.app, config, FoundModel(entry, manifest), hardware)
        best = selection.rankings[0].judgement if selection.rankings else None
        size = _shown_size(entry.num_parameters)
        name, state = ("-", "-") if best is None else (best.profile.name, best.state.value)
        rows.append((entry.name, size, name, state, entry.description))
        values.append({**model_as_json(entry), "best": None if best is None else judgement_dict(best)})
    value = {"manifest": manifest_as_json(manifest), "hardware": hardware.name, "models": values}
    asked.answer(
        value, f"{columns(rows)}\n{counted(len(values), 'model')} of {manifest.origin}, judged for {hardware.name}"
    )


def _shown_size(num_parameters: int) -> str:
    if num_parameters >= 1e9:
        return f"{num_parameters / 1e9:.2f} B"
    return f"{num_parameters / 1e6:.0f} M" if num_parameters else "-"


def explain(argv: Sequence[str]) -> int:
    """Prints every rule and what became of each profile; the code says if none can run."""
    parser = command_parser("explain", "Print every rule of the choice, and why each profile won or lost.")
    add_choice(parser)
    asked = read(parser, argv)
    found, hardware = asked.find(), asked.hardware()
    selection = rank_profiles(asked.app, asked.config, found, hardware)
    asked.answer(_facts(found, selection, hardware), explanation(selection))
    return DONE if selection.chosen is not None else code_of(HubCause.NO_PROFILE)


def select(argv: Sequence[str]) -> int:
    """Prints the chosen profile and the command line that serves it."""
    parser = command_parser("select", "Print the best profile, and the command line of 'mxext serve' that runs it.")
    add_choice(parser)
    asked = read(parser, argv)
    found, hardware = asked.find(), asked.hardware()
    selection = choose(asked.app, asked.config, found, hardware)
    chosen = selection.chosen
    assert chosen is not None, "choose() raises if nothing can run"
    command = serve_command(asked.app, found.entry, chosen)
    value = {
        "model": found.entry.name,
        "manifest": manifest_as_json(found.manifest),
        "hardware": hardware.name,
        "goal": selection.goal,
        "goal_origin": selection.goal_origin,
        "chosen": judgement_dict(chosen),
        "why": selection.rankings[0].why,
        "command": command,
    }
    rows = [
        ("model", f"{found.entry.name} ({found.manifest.origin})"),
        ("profile", f"{chosen.profile.name} ({chosen.profile.id[:12]})"),
        ("goal", f"{selection.goal} ({selection.goal_origin})"),
        ("state", f"{chosen.state.value}: {chosen.reasons[0]}"),
        ("why", selection.rankings[0].why),
    ]
    if chosen.estimate is not None and chosen.estimate.disk and found.folder is None:
        rows.append(("files", format_bytes(chosen.estimate.disk)))
    asked.answer(value, columns([*rows, ("command", shlex.join(command))]))
    return DONE


def hardware(argv: Sequence[str]) -> int:
    """Prints what the machine is made of."""
    from vllm_mxext.hub.hardware_inspect import as_dict as hardware_dict  # noqa: PLC0415 - only this command prints it
    from vllm_mxext.hub.hardware_inspect import describe  # noqa: PLC0415

    parser = command_parser("hardware", "Print what this machine is made of, or the one of --hardware.", "")
    add_choice(parser)
    asked = read(parser, argv)
    machine = asked.hardware()
    asked.answer(hardware_dict(machine), describe(machine))
    return DONE


def _facts(found: FoundModel, selection: Selection, hardware: Hardware) -> dict[str, object]:
    return {"manifest": manifest_as_json(found.manifest), "hardware": hardware.name, **as_dict(selection)}
