"""`adapter_config.json` of PEFT: what matters of it for serving, and what is refused."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from vllm_mxext.lora.opening import number, printable, read_json, refusal

_REFUSED = {
    "alora_invocation_tokens": "an activated LoRA (aLoRA), which starts in the middle of a prompt",
    "layer_replication": "made for a model whose layers are repeated (layer_replication)",
    "use_qalora": "a QA-LoRA (use_qalora), which pools its inputs",
    "use_bdlora": "a block-diagonal LoRA (use_bdlora)",
    "arrow_config": "routed between experts (arrow_config)",
    "kasa_config": "a KaSA adapter (kasa_config), which changes the base weights",
    "monteclora_config": "a MonteCLoRA adapter (monteclora_config)",
    "target_parameters": "made for parameters of experts (target_parameters)",
    "trainable_token_indices": "made of single tokens (trainable_token_indices)",
}
_CHANGES_BASE = ("pissa", "corda", "olora", "loftq", "lora_ga")
_MAX_PATTERN_LENGTH = 500
_MAX_REPEATS = 4
_MAX_PATTERNS = 2000
_Value = TypeVar("_Value")

# What patterns are made of, none of which takes exponential time to match: no repeated groups.
_ATOM = r"(?:[\w\-]|\.|\\[.dwDWsS\-_]|\[\^?[\w\-]+\])"
_PATTERN = re.compile(rf"\^?(?:{_ATOM}[*+?]?|\((?:\?:)?{_ATOM}*(?:\|{_ATOM}*)*\)|\\b)*\$?")


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """What matters of `adapter_config.json`.

    Attributes:
        rank: `r` of modules that no pattern names.
        alpha: `lora_alpha` of these.
        rank_patterns: names or regular expressions, and their `r`.
        alpha_patterns: names or regular expressions, and their `lora_alpha`.
        use_rslora: scaled by the root of the rank.
        use_dora: has magnitudes.
        modules_to_save: modules that are replaced.
        ties_weights: what is done to the embedding of a model with tied embeddings is done to the head too.
        base_model_name: the model that it was made for.
    """

    rank: int
    alpha: float
    rank_patterns: Sequence[tuple[re.Pattern[str], int]]
    alpha_patterns: Sequence[tuple[re.Pattern[str], float]]
    use_rslora: bool
    use_dora: bool
    modules_to_save: tuple[str, ...]
    ties_weights: bool
    base_model_name: str | None

    def rank_of(self, module_name: str) -> int:
        """Rank of a module, by its name in the base model."""
        return _first_match(self.rank_patterns, module_name, self.rank)

    def scaling_of(self, module_name: str, rank: int) -> float:
        """Factor on its low-rank product."""
        alpha = _first_match(self.alpha_patterns, module_name, self.alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def read_peft_config(path: Path) -> PeftConfig:
    """Reads `adapter_config.json`.

    Raises:
        AdapterError: it is broken, or describes an adapter of a kind that is not served.
    """
    values = read_json(path)
    _refuse_kinds(path, values)
    saved = values.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) for name in saved):
        raise refusal(f"{path}: modules_to_save must be a list of names.")
    name = values.get("base_model_name_or_path")
    return PeftConfig(
        rank=_positive_int(path, "r", values.get("r", 8)),
        alpha=number(path, "lora_alpha", values.get("lora_alpha", 8)),
        rank_patterns=_patterns(path, values, "rank_pattern", _positive_int),
        alpha_patterns=_patterns(path, values, "alpha_pattern", number),
        use_rslora=bool(values.get("use_rslora")),
        use_dora=bool(values.get("use_dora")),
        modules_to_save=tuple(saved),
        ties_weights=bool(values.get("ensure_weight_tying")),
        base_model_name=printable(name) if isinstance(name, str) and name else None,
    )


def _refuse_kinds(path: Path, values: Mapping[str, Any]) -> None:
    peft_type = values.get("peft_type", "LORA")
    if peft_type != "LORA":
        raise refusal(f"{path} describes an adapter of the type {printable(str(peft_type))}; only LORA is served.")
    for key, kind in _REFUSED.items():
        if values.get(key):
            raise refusal(f"{path} describes an adapter that is {kind}; that is not served.")
    init = values.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGES_BASE):
        raise refusal(
            f"{path}: an adapter with init_lora_weights {printable(init)!r} belongs to a changed base model; save it "
            "with path_initial_model_for_weight_conversion, which makes a plain one."
        )


def _patterns(
    path: Path, values: Mapping[str, Any], key: str, check: Callable[[Path, str, object], _Value]
) -> list[tuple[re.Pattern[str], _Value]]:
    patterns = values.get(key) or {}
    if not isinstance(patterns, dict) or len(patterns) > _MAX_PATTERNS:
        raise refusal(f"{path}: {key} must be a JSON object of at most {_MAX_PATTERNS} names.")
    compiled = []
    for pattern, value in patterns.items():
        num_repeats = sum(pattern.count(sign) for sign in "*+?(")
        if len(pattern) > _MAX_PATTERN_LENGTH or num_repeats > _MAX_REPEATS or not _PATTERN.fullmatch(pattern):
            raise refusal(
                f"{path}: the pattern {printable(pattern)!r} of {key} is not understood; write names of modules there."
            )
        # As PEFT matches them (`peft.utils.other.get_pattern_key`).
        compiled.append((re.compile(rf"(.*\.)?({pattern})$"), check(path, pattern, value)))
    return compiled


def _first_match(patterns: Sequence[tuple[re.Pattern[str], _Value]], module_name: str, default: _Value) -> _Value:
    return next((value for pattern, value in patterns if pattern.match(module_name)), default)


def _positive_int(path: Path, key: str, value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise refusal(f"{path}: {printable(key)} must be a positive whole number.")
    return value
