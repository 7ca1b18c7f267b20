"""`select()`: which profile of a model runs on a machine, by rules that are data, so that they can be printed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from vllm_mxext.config.sources import did_you_mean
from vllm_mxext.errors import ConfigError, NoCompatibleProfileError
from vllm_mxext.hub.compatibility import is_made_for
from vllm_mxext.hub.hardware import Hardware
from vllm_mxext.hub.judgement import Judgement, Ranking, Selection, State
from vllm_mxext.hub.manifest.model import EngineName, Goal, ModelEntry, Profile
from vllm_mxext.hub.states import judge

DEFAULT_PROFILE = "default"
"""Name that stands for the best profile."""

ENOUGH_CONTEXT = 8192
"""Tokens with which a model is of use for nearly everything."""

NEARLY_WHOLE = 0.75
"""Share of the context from which a reduced one is as good as all: a slower engine is no price for the rest."""

_LEAST_ID_PREFIX = 4

_LOSSINESS = {
    "fp32": 0, "bf16": 0, "fp16": 0,
    "fp8": 1, "int8": 1, "w8a8": 1, "w8a16": 1, "8bit": 1, "q8_0": 1,
    "q6_k": 2,
    "q5_k_m": 3, "q5_k_s": 3,
    "int4": 4, "awq": 4, "gptq": 4, "w4a16": 4, "mxfp4": 4, "nvfp4": 4, "4bit": 4, "q4_k_m": 4, "q4_k_s": 4, "q4_0": 4,
    "q3_k_m": 5,
    "q2_k": 6,
}  # fmt: skip
_UNKNOWN_LOSSINESS = 7

_ENGINES_ON_DEVICES: tuple[EngineName, ...] = (
    "tensorrt_llm", "vllm", "mlx", "native", "llama.cpp", "transformers",
)  # fmt: skip
_ENGINES_ON_CPU: tuple[EngineName, ...] = ("native", "vllm", "llama.cpp", "mlx", "tensorrt_llm", "transformers")

_KINDS_FOR_GOAL = {
    "latency": ("latency", "balanced", "throughput"),
    "throughput": ("throughput", "balanced", "latency"),
    "memory": (),
}

Key = tuple[float | str, ...]


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule: of two profiles that all rules before it hold equal, the one with the smaller key comes first.

    Attributes:
        name: short, for tables.
        sentence: what it prefers and why, for people.
        key: judgement, goal and machine -> what is compared.
    """

    name: str
    sentence: str
    key: Callable[[Judgement, Goal, Hardware], Key]


def _context(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del goal, hardware
    if judgement.state is not State.REDUCED or judgement.estimate is None:
        return (0,)
    return (max(0, ENOUGH_CONTEXT - judgement.estimate.max_model_len),)


def _fallback(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del hardware
    return (judgement.profile.is_fallback and goal != "memory",)


def _device(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del goal, hardware
    return (judgement.profile.device.kind == "cpu",)


def _whole(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del goal, hardware
    return (judgement.state is State.REDUCED and judgement.share_of_context < NEARLY_WHOLE,)


def _goal(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del hardware
    if goal == "memory":
        return (total_bytes(judgement),)
    return (_KINDS_FOR_GOAL[goal].index(judgement.profile.tags.profile),)


def _precision(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del goal, hardware
    return (_LOSSINESS.get(judgement.profile.tags.precision.lower(), _UNKNOWN_LOSSINESS),)


def _devices(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del hardware
    number = judgement.profile.tags.tp * judgement.profile.tags.pp
    return (-judgement.profile.tags.tp if goal == "latency" else number,)


def _match(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    """Named by id, made for this GPU, of this architecture; made for another GPU comes last."""
    del goal
    profile = judgement.profile
    used = [hardware.devices[position] for position in judgement.device_indexes]
    if not used:
        return (0,)
    if any(is_made_for(profile.device, device) for device in used):
        return (0,)
    if profile.tags.gpu:
        return (1 if profile.tags.gpu.lower() in used[0].name.lower() else 4,)
    return (2 if profile.device.arch else 3,)


def _engine(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del goal, hardware
    order = _ENGINES_ON_CPU if judgement.profile.device.kind == "cpu" else _ENGINES_ON_DEVICES
    return (order.index(judgement.profile.tags.llm_engine),)


def _name(judgement: Judgement, goal: Goal, hardware: Hardware) -> Key:
    del goal, hardware
    return (judgement.profile.name,)


RULES = (
    Rule("context", f"Profiles with room for at least {ENOUGH_CONTEXT:,} tokens, or for the model's whole context if "
         "that is shorter, come before those with less; of these, more is better.", _context),
    Rule("fallback", "Fallback profiles come after all others, unless the goal is memory.", _fallback),
    Rule("device", "Profiles on a GPU come before those on the processor.", _device),
    Rule("state", "Profiles with at least three quarters of the model's context come before those with less.", _whole),
    Rule("goal", "Profiles made for the goal come first, then balanced ones; for memory, the smallest.", _goal),
    Rule("precision", "A more exact precision comes before one that loses more; only the goal memory overrules this.",
         _precision),
    Rule("devices", "For latency, more devices that share each layer come first; for throughput and memory, fewer.",
         _devices),
    Rule("match", "Profiles made for exactly this device come before those for its kind, and those before others.",
         _match),
    Rule("engine", f"On GPUs engines come in the order {', '.join(_ENGINES_ON_DEVICES)}; on the processor "
         f"{', '.join(_ENGINES_ON_CPU)}.", _engine),
    Rule("name", "What is equal in all of this goes by its name.", _name),
)  # fmt: skip
"""The rules in the order of their weight."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a choice is asked for.

    Attributes:
        goal: what is best.
        goal_origin: who said so, for people.
        profile: name, alias, id or beginning of an id; None or `default` = the best.
        tensor_parallel: only profiles with so many devices that share each layer; None = any.
        overrides: flags that the user has set, with underscores: they count instead of the profiles' own.
        is_stored: the model's files are here already, so that they need no disk space.
    """

    goal: Goal
    goal_origin: str = ""
    profile: str | None = None
    tensor_parallel: int | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    is_stored: bool = False


def select(entry: ModelEntry, hardware: Hardware, question: Question) -> Selection:
    """Chooses a profile.

    Raises:
        ConfigError: no profile has the asked name, or several have ids that begin so.
        NoCompatibleProfileError: no profile can run, or the one that was asked for cannot.
    """
    selection = rank(entry, hardware, question)
    if selection.chosen is None:
        others = rank(entry, hardware, replace(question, profile=None, tensor_parallel=None))
        raise NoCompatibleProfileError(_refusal(selection, hardware, question.profile, others))
    return selection


def rank(entry: ModelEntry, hardware: Hardware, question: Question) -> Selection:
    """Orders all profiles of a model; where none can run, none is chosen.

    Raises:
        ConfigError: no profile has the asked name, or several have ids that begin so.
    """
    goal, profile = question.goal, question.profile
    wanted = None if profile in (None, DEFAULT_PROFILE) else find_profile(entry, profile)
    judgements = [
        judge(entry, candidate, hardware, overrides=question.overrides, is_stored=question.is_stored)
        for candidate in entry.profiles
    ]
    left_out = {
        judgement.profile.name: reason
        for judgement in judgements
        if (reason := _left_out(judgement.profile, wanted, question.tensor_parallel))
    }
    candidates = [judgement for judgement in judgements if judgement.profile.name not in left_out]
    able = [judgement for judgement in candidates if judgement.state.can_run]
    able.sort(key=lambda judgement: _keys(judgement, goal, hardware))
    unable = [judgement for judgement in candidates if not judgement.state.can_run]
    unable.sort(key=lambda judgement: (tuple(State).index(judgement.state), judgement.profile.name))
    rankings = [
        *(
            Ranking(judgement, place, _why(able, judgement, goal, hardware, is_filtered=bool(left_out)))
            for place, judgement in enumerate(able, 1)
        ),
        *(Ranking(judgement, None, judgement.reasons[0]) for judgement in unable),
        *(
            Ranking(judgement, None, left_out[judgement.profile.name])
            for judgement in sorted(judgements, key=lambda judgement: judgement.profile.name)
            if judgement.profile.name in left_out
        ),
    ]
    rules = tuple(f"{rule.name}: {rule.sentence}" for rule in RULES)
    return Selection(entry, goal, question.goal_origin, able[0] if able else None, tuple(rankings), rules)


def find_profile(entry: ModelEntry, text: str | None) -> Profile:
    """Returns the profile with this name, alias, id, or beginning of an id of at least four digits.

    Raises:
        ConfigError: there is none, or several have ids that begin so.
    """
    text = text or ""
    named = [profile for profile in entry.profiles if text == profile.name or text in profile.aliases]
    if named:
        return named[0]
    prefix = text.lower()
    by_id = [profile for profile in entry.profiles if len(text) >= _LEAST_ID_PREFIX and profile.id.startswith(prefix)]
    if len({profile.id for profile in by_id}) > 1:
        listed = ", ".join(f"{profile.id[:12]} ({profile.name})" for profile in by_id)
        raise ConfigError(
            f"Several profiles of {entry.name} have ids that begin with {text}: {listed}; give more of it."
        )
    if by_id:
        return by_id[0]
    known = [name for profile in entry.profiles for name in (profile.name, *profile.aliases)]
    guess = did_you_mean(text, known)
    listed = f" Known: {', '.join(profile.name for profile in entry.profiles)}." if guess == "." else ""
    raise ConfigError(f"{entry.name} has no profile '{text}'{guess}{listed}")


def total_bytes(judgement: Judgement) -> int:
    """Returns the memory of all devices and of the host that a profile needs; 0 if it is not known.

    Of the KV cache it counts one longest request: some engines make it as large as there is room.
    """
    estimate = judgement.estimate
    if estimate is None:
        return 0
    spare = int(estimate.kv_cache * (1 - 1 / max(estimate.num_requests, 1.0)))
    return (estimate.device_total - spare) * max(1, len(judgement.device_indexes)) + estimate.host


def _left_out(profile: Profile, wanted: Profile | None, tensor_parallel: int | None) -> str | None:
    if wanted is not None and profile.name != wanted.name:
        return f"The profile {wanted.name} was asked for."
    if tensor_parallel is not None and profile.tags.tp != tensor_parallel:
        return f"A tensor-parallel size of {tensor_parallel} was asked for, and it has {profile.tags.tp}."
    return None


def _keys(judgement: Judgement, goal: Goal, hardware: Hardware) -> tuple[Key, ...]:
    return tuple(rule.key(judgement, goal, hardware) for rule in RULES)


def _why(able: Sequence[Judgement], judgement: Judgement, goal: Goal, hardware: Hardware, *, is_filtered: bool) -> str:
    """Names the first rule that tells a profile from the one before it; of the chosen one, from the next."""
    if len(able) == 1:
        of_what = "of those that were asked for it" if is_filtered else "it"
        return f"Chosen: {of_what} is the only one that can run."
    is_chosen = judgement is able[0]
    other = able[1] if is_chosen else able[0]
    keys = zip(RULES, _keys(judgement, goal, hardware), _keys(other, goal, hardware), strict=True)
    rule = next(rule for rule, mine, others in keys if mine != others)
    if is_chosen:
        return f"Chosen before {other.profile.name} by rule {rule.name}."
    return f"Lost to {other.profile.name} by rule {rule.name}: {rule.sentence}"


def _refusal(selection: Selection, hardware: Hardware, profile: str | None, others: Selection) -> str:
    entry = selection.model
    unable = [ranking for ranking in selection.rankings if ranking.why == ranking.judgement.reasons[0]]
    what = f"No profile of {entry.name} can run on {hardware.name}."
    if profile not in (None, DEFAULT_PROFILE) and len(unable) == 1:
        what = f"The profile {unable[0].judgement.profile.name} of {entry.name} cannot run on {hardware.name}."
    shown = unable or selection.rankings
    reasons = " ".join(f"{ranking.judgement.profile.name}: {ranking.why}" for ranking in shown)
    instead = "" if others.chosen is None else f" The profile {others.chosen.profile.name} would run instead."
    return f"{what} {reasons}{instead}"
