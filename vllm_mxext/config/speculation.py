"""Draft tokens in the configuration: `--speculative-config` and its short forms become a `SpeculationConfig`."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from vllm_mxext.config import values
from vllm_mxext.config.engine import DeviceConfig, ModelConfig, Quantization, SpeculationConfig
from vllm_mxext.config.model_spec import read_model_spec
from vllm_mxext.config.options import SpeculationOptions
from vllm_mxext.errors import ConfigError

_DEFAULT_LOOKUP = 5
"""vLLM's default of prompt_lookup_min and prompt_lookup_max."""

_KEYS: dict[str, Callable[[Any], Any]] = {
    "method": values.choice("ngram", "draft_model").parse,
    "num_speculative_tokens": values.integer(1, 64).parse,
    "model": values.text().parse,
    "quantization": values.choice("none", "int8").parse,
    "prompt_lookup_min": values.integer(1).parse,
    "prompt_lookup_max": values.integer(1).parse,
    "draft_tensor_parallel_size": values.integer(1, 1).parse,
}
_OTHER_METHODS = "suffix, eagle, medusa and others"
_METHOD_WORDS = {"[ngram]": "ngram"}


def resolve_speculation(
    options: SpeculationOptions, model: ModelConfig, device: DeviceConfig
) -> tuple[SpeculationConfig | None, int]:
    """Returns where draft tokens come from and how many a request gets per step at most; None and 0 if not asked for.

    Raises:
        ConfigError: a key or value is wrong, or the draft model does not fit the model.
    """
    given = _merged(options)
    if not given:
        return None, 0
    if given.get("model") in ("ngram", "[ngram]"):  # vLLM's older spelling
        given.setdefault("method", "ngram")
        del given["model"]
    method = given.get("method") or ("draft_model" if "model" in given else None)
    if method is None:
        raise ConfigError("--speculative-config needs a method (ngram or draft_model), or a model to draft with.")
    if "num_speculative_tokens" not in given:
        raise ConfigError("--speculative-config needs num_speculative_tokens, for example 4; or give --spec-tokens 4.")
    num_tokens = int(given["num_speculative_tokens"])
    if method == "ngram":
        _refuse(given, "ngram", "model", "quantization")
        return _ngram(given), num_tokens
    _refuse(given, "draft_model", "prompt_lookup_min", "prompt_lookup_max")
    if "model" not in given:
        raise ConfigError("--speculative-config with method draft_model needs a model; or give --spec-model FOLDER.")
    return SpeculationConfig("draft_model", draft=_draft(given, model, device)), num_tokens


def shortened(speculation: SpeculationConfig | None, max_model_len: int) -> SpeculationConfig | None:
    """Returns the same for requests of at most `max_model_len` tokens."""
    if speculation is None or speculation.draft is None:
        return speculation
    draft = speculation.draft
    return replace(speculation, draft=replace(draft, max_model_len=min(draft.max_model_len, max_model_len)))


def _merged(options: SpeculationOptions) -> dict[str, Any]:
    """Joins the JSON object and the short forms, every value checked."""
    given: dict[str, Any] = {}
    for key, value in (options.speculative_config or {}).items():
        if key not in _KEYS:
            raise ConfigError(f"--speculative-config does not know '{key}'; its keys are {', '.join(_KEYS)}.")
        if value is not None:
            given[key] = _checked(key, value)
    short = {
        "method": ("--spec-method", options.spec_method),
        "model": ("--spec-model", options.spec_model),
        "num_speculative_tokens": ("--spec-tokens", options.spec_tokens),
    }
    for key, (flag, value) in short.items():
        if value is None:
            continue
        if given.get(key, value) != value:
            raise ConfigError(f"{flag} {value} contradicts {key} in --speculative-config; give one of them.")
        given[key] = value
    return given


def _checked(key: str, value: Any) -> Any:
    try:
        return _KEYS[key](_METHOD_WORDS.get(value, value) if key == "method" else value)
    except values.BadValueError as error:
        hint = f"; {_OTHER_METHODS} come with a later version" if key == "method" else ""
        raise ConfigError(f"{key} in --speculative-config {error}, got {value!r}{hint}.") from None


def _refuse(given: dict[str, Any], method: str, *keys: str) -> None:
    for key in keys:
        if key in given:
            raise ConfigError(f"{key} in --speculative-config means nothing with method {method}; remove it.")


def _ngram(given: dict[str, Any]) -> SpeculationConfig:
    shortest, longest = given.get("prompt_lookup_min"), given.get("prompt_lookup_max")
    shortest = shortest or longest or _DEFAULT_LOOKUP
    longest = longest or shortest
    if shortest > longest:
        raise ConfigError(
            f"prompt_lookup_min {shortest} in --speculative-config is more than prompt_lookup_max {longest}; lower it."
        )
    return SpeculationConfig("ngram", shortest, longest)


def _draft(given: dict[str, Any], model: ModelConfig, device: DeviceConfig) -> ModelConfig:
    path = Path(os.path.expanduser(given["model"]))
    if not os.path.isdir(path):
        raise ConfigError(f"The draft model '{given['model']}' is no folder on this machine; name one of a checkpoint.")
    path = path.resolve()
    spec = read_model_spec(path)
    quantization = cast("Quantization", given.get("quantization", "none"))
    if (quantization == "int8" or spec.int4 is not None) and device.device != "cpu":
        raise ConfigError("A draft model with int8 or int4 weights needs --device cpu in this version.")
    if spec.vocab_size != model.spec.vocab_size:
        raise ConfigError(
            f"The draft model has a vocabulary of {spec.vocab_size} tokens and the model one of "
            f"{model.spec.vocab_size}; choose a draft model of the same family."
        )
    vocabularies = _vocabulary(path), _vocabulary(model.tokenizer_path)
    if None not in vocabularies and vocabularies[0] != vocabularies[1]:
        raise ConfigError(
            "The draft model's tokenizer.json gives other ids to tokens than the model's; choose a draft model of the "
            "same family."
        )
    return ModelConfig(
        path=path,
        tokenizer_path=path,
        spec=spec,
        dtype=model.dtype,
        max_model_len=min(model.max_model_len, spec.max_position_embeddings),
        quantization="none" if spec.int4 is not None else quantization,
        load_format=model.load_format,
        seed=model.seed,
    )


def _vocabulary(path: Path) -> dict[str, int] | None:
    """Token -> id from a `tokenizer.json`, or None if there is none to compare."""
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        content = json.loads(file.read_bytes())
        known = content["model"]["vocab"]
        added = {token["content"]: token["id"] for token in content.get("added_tokens") or ()}
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return {**known, **added} if isinstance(known, dict) else {**dict(_numbered(known)), **added}


def _numbered(pieces: list[list[Any]]) -> list[tuple[str, int]]:
    """Ids of a Unigram vocabulary, a list of pieces with scores."""
    return [(str(piece[0]), index) for index, piece in enumerate(pieces)]
