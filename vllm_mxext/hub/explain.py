"""A selection for people and for JSON: every rule, why each profile lost, and a table."""

from __future__ import annotations

from typing import Any

from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.hub.judgement import Estimate, Judgement, Ranking, Selection

ID_LENGTH = 12
"""Digits of an id in tables; enough to name a profile by."""

_COLUMNS = ("", "profile", "id", "engine", "precision", "tp", "state", "memory", "why")


def explain(selection: Selection) -> str:
    """Returns which profile was chosen, by which rules, and what became of each of the others."""
    origin = f" ({selection.goal_origin})" if selection.goal_origin else ""
    chosen = "none" if selection.chosen is None else selection.chosen.profile.name
    lines = [f"{selection.model.name}, goal {selection.goal}{origin}: {chosen}", "", "Rules, the weightiest first:"]
    lines += [f"  {number:>2}. {rule}" for number, rule in enumerate(selection.rules, 1)]
    lines += ["", "Profiles:"]
    for ranking in selection.rankings:
        lines += _paragraph(ranking)
    return "\n".join(lines)


def table(selection: Selection) -> str:
    """Returns one line per profile, the chosen one first."""
    rows = [_COLUMNS, *(_row(selection, ranking) for ranking in selection.rankings)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS))]
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def as_dict(selection: Selection) -> dict[str, Any]:
    """Returns the selection as values for JSON."""
    return {
        "model": selection.model.name,
        "goal": selection.goal,
        "goal_origin": selection.goal_origin,
        "chosen": None if selection.chosen is None else judgement_dict(selection.chosen),
        "rules": list(selection.rules),
        "profiles": [
            {**judgement_dict(ranking.judgement), "place": ranking.place, "why": ranking.why}
            for ranking in selection.rankings
        ],
    }


def judgement_dict(judgement: Judgement) -> dict[str, Any]:
    """Returns what is thought of one profile as values for JSON."""
    profile, tags = judgement.profile, judgement.profile.tags
    return {
        "name": profile.name,
        "aliases": list(profile.aliases),
        "id": profile.id,
        "tags": {name: getattr(tags, name) for name in tags.__slots__},
        "state": judgement.state.value,
        "reasons": list(judgement.reasons),
        "devices": list(judgement.device_indexes),
        "suggested": dict(judgement.suggested),
        "available_bytes": judgement.available_bytes,
        "estimate": None if judgement.estimate is None else _estimate_dict(judgement.estimate),
    }


def _paragraph(ranking: Ranking) -> list[str]:
    judgement = ranking.judgement
    place = "-" if ranking.place is None else str(ranking.place)
    lines = [f"  {place:>2}  {judgement.profile.name} ({judgement.profile.id[:ID_LENGTH]}): {judgement.state.value}"]
    lines += [f"      {sentence}" for sentence in dict.fromkeys((ranking.why, *judgement.reasons))]
    if judgement.suggested:
        flags = " ".join(f"--{name} {value}" for name, value in judgement.suggested.items())
        lines.append(f"      Suggested: {flags}")
    return lines


def _row(selection: Selection, ranking: Ranking) -> tuple[str, ...]:
    judgement, tags = ranking.judgement, ranking.judgement.profile.tags
    return (
        "*" if judgement is selection.chosen else "",
        judgement.profile.name,
        judgement.profile.id[:ID_LENGTH],
        tags.llm_engine,
        tags.precision,
        str(tags.tp),
        judgement.state.value,
        _memory(judgement),
        ranking.why,
    )


def _memory(judgement: Judgement) -> str:
    """What it takes on each device, or on the CPU in all, of what is available there."""
    estimate = judgement.estimate
    if estimate is None:
        return "-"
    needed = estimate.device_total + (0 if judgement.device_indexes else estimate.host)
    return f"{format_bytes(needed)} of {format_bytes(judgement.available_bytes)}"


def _estimate_dict(estimate: Estimate) -> dict[str, Any]:
    fields = {name: getattr(estimate, name) for name in Estimate.__slots__}
    return {**fields, "device_total": estimate.device_total}
