"""Reading a tokenizer from a checkpoint folder: `load_tokenizer`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tokenizers import AddedToken
from tokenizers import Tokenizer as BackendTokenizer

from vllm_mxext.config.frontend import ChatTemplateConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.tokenizer.builtin_templates import builtin_template
from vllm_mxext.tokenizer.chat_template import ChatTemplates
from vllm_mxext.tokenizer.hf_tokenizer import HfTokenizer

_NAMED_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
_ADDED_TOKEN_FIELDS = ("content", "single_word", "lstrip", "rstrip", "normalized", "special")


def load_tokenizer(path: str | Path, templates: ChatTemplateConfig | None = None) -> HfTokenizer:
    """Loads the tokenizer of a checkpoint folder, or of the folder of a `tokenizer.json`.

    As in transformers 5, the post-processor of `tokenizer.json` alone decides which special tokens `encode` adds;
    `add_bos_token` and `add_eos_token` of `tokenizer_config.json` are not looked at.

    `tokenizer.json` is taken as it is. transformers 5 rebuilds the pre-tokenizer of Llama-2 checkpoints whose
    `tokenizer_class` is `LlamaTokenizer`, which changes the tokens of text that begins with spaces or follows a special
    token; transformers 4 did not, and neither does this.

    Args:
        path: the folder, or its `tokenizer.json`.
        templates: how conversations are rendered; by default as the checkpoint says.

    Raises:
        ConfigError: a file is missing or malformed, or the configured template is.
    """
    path = Path(path)
    folder = path.parent if path.name == "tokenizer.json" else path
    backend = _load_backend(folder)
    config = _read_json(folder / "tokenizer_config.json")
    if "added_tokens_decoder" not in config:
        config = {**config, **_read_json(folder / "special_tokens_map.json")}
    special_tokens = dict(_named_special_tokens(config))
    _add_missing_tokens(backend, config, special_tokens)
    is_bpe = type(backend.model).__name__ == "BPE"
    force_clean_up = config.get("clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output", False)
    return HfTokenizer(
        backend,
        special_tokens=special_tokens,
        chat_templates=ChatTemplates(_templates(folder, config, backend), special_tokens, templates),
        clean_up_spaces=bool(config.get("clean_up_tokenization_spaces")) and (not is_bpe or bool(force_clean_up)),
    )


def read_chat_templates(folder: Path, config: dict[str, Any]) -> dict[str, str]:
    """Finds the chat templates of a checkpoint by name; the usual one is called `default`.

    Files (`chat_template.jinja`, `additional_chat_templates/NAME.jinja`) replace the entry in `tokenizer_config.json`,
    which is a text or a list of named ones.

    Raises:
        ConfigError: the entry has another form.
    """
    templates = {}
    default = folder / "chat_template.jinja"
    if default.is_file():
        templates["default"] = default.read_text(encoding="utf-8")
    for file in sorted((folder / "additional_chat_templates").glob("*.jinja")):
        templates[file.stem] = file.read_text(encoding="utf-8")
    if templates:
        return templates
    entry = config.get("chat_template")
    if entry is None:
        return {}
    if isinstance(entry, str):
        return {"default": entry}
    try:
        return {str(named["name"]): str(named["template"]) for named in entry}
    except (TypeError, KeyError):
        raise ConfigError(
            f"chat_template in {folder / 'tokenizer_config.json'} must be a text or a list of "
            '{"name": ..., "template": ...} entries.'
        ) from None


def _templates(folder: Path, config: dict[str, Any], backend: BackendTokenizer) -> dict[str, str]:
    """The checkpoint's templates; the family's if it has none."""
    templates = read_chat_templates(folder, config)
    if not templates:
        model_type = str(_read_json(folder / "config.json").get("model_type"))
        builtin = builtin_template(model_type, backend.get_vocab(with_added_tokens=True))
        templates = {} if builtin is None else {"default": builtin}
    return templates


def _load_backend(folder: Path) -> BackendTokenizer:
    file = folder / "tokenizer.json"
    if not file.is_file():
        what = "has only a sentencepiece tokenizer.model" if (folder / "tokenizer.model").is_file() else "has none"
        raise ConfigError(
            f"tokenizer.json is needed, but {folder} {what}; make it with "
            f"`transformers.AutoTokenizer.from_pretrained({str(folder)!r}).save_pretrained({str(folder)!r})`."
        )
    try:
        backend = BackendTokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ConfigError(f"{file} is not a tokenizer that the tokenizers library can read: {error}") from error
    backend.no_truncation()
    backend.no_padding()
    return backend


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        values = json.loads(file.read_bytes())
    except ValueError as error:
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a JSON object.")
    return values


def _named_special_tokens(config: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Special tokens in the order of transformers: the standard names first, then the model's own."""
    own = [name for name in config if name.endswith("_token") and name not in _NAMED_SPECIAL_TOKENS]
    for name in (*_NAMED_SPECIAL_TOKENS, *own):
        text = _token_text(config.get(name))
        if text is not None:
            yield name, text
    extra = config.get("extra_special_tokens")
    if isinstance(extra, dict):
        for name, token in extra.items():
            text = _token_text(token)
            if text is not None:
                yield name, text


def _token_text(token: Any) -> str | None:
    content = token.get("content") if isinstance(token, dict) else token
    return content if isinstance(content, str) else None


def _add_missing_tokens(backend: BackendTokenizer, config: dict[str, Any], special_tokens: dict[str, str]) -> None:
    """Adds the tokens that only the configuration knows, in the order of transformers."""
    present = {repr(token) for token in backend.get_added_tokens_decoder().values()}
    added = []
    for _, fields in sorted(config.get("added_tokens_decoder", {}).items(), key=lambda item: int(item[0])):
        token = AddedToken(**{name: fields[name] for name in _ADDED_TOKEN_FIELDS if name in fields})
        if repr(token) not in present:
            added.append(token)
    extra = config.get("extra_special_tokens") or config.get("additional_special_tokens")
    extra_texts = [_token_text(token) for token in extra] if isinstance(extra, list) else []
    known = {token.content for token in [*backend.get_added_tokens_decoder().values(), *added]}
    missing = [text for text in dict.fromkeys([*special_tokens.values(), *extra_texts]) if text and text not in known]
    added.extend(AddedToken(text, special=True, normalized=False) for text in missing)
    if added:
        backend.add_tokens(added)
