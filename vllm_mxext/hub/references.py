"""Other things that flags and manifests name: a tokenizer, a draft model, adapters; they become local folders."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from vllm_mxext.config.app import AppConfig, with_settings
from vllm_mxext.config.hub import HubConfig, as_uri, is_remote
from vllm_mxext.config.server import LoRAModule
from vllm_mxext.errors import DownloadError
from vllm_mxext.hub.entries import FoundModel
from vllm_mxext.hub.manifest.model import Artifact, ModelEntry
from vllm_mxext.hub.mx_download import Downloading, Wish, obtain

_TOKENIZER = Artifact(
    "tokenizer", "tokenizer", ("tokenizer*", "*.json", "*.model", "*.tiktoken", "*.jinja", "merges.txt", "vocab.txt")
)
_WEIGHTS = Artifact("model")


def with_adapters(app: AppConfig, found: FoundModel) -> AppConfig:
    """Serves the adapters that a manifest has for its model, if adapters are served and no flag names others.

    Args:
        app: the intent, the profile's flags in it.
        found: the model; paths of adapters are relative to its manifest.
    """
    if not app.lora.enable_lora or not found.entry.adapters:
        return app
    base = Path(found.manifest.path).parent if found.manifest.path is not None else Path()
    modules = tuple(
        LoRAModule(
            adapter.name,
            adapter.uri if "://" in adapter.uri else str(base / adapter.uri),
            description=adapter.description,
            is_loaded_at_start=adapter.is_loaded_at_start,
        )
        for adapter in found.entry.adapters
    )
    return with_settings(app, {"lora_modules": modules}, f"manifest, adapters of {found.entry.name}")


def with_local_references(app: AppConfig, config: HubConfig, downloading: Downloading) -> AppConfig:
    """Returns the intent with folders of this machine in place of what sources have.

    Raises:
        HubError: something cannot be had.
        NeedsDownloadError: something is missing and downloading is not allowed.
    """

    def local(reference: str, artifact: Artifact = _WEIGHTS) -> str:
        return str(local_copy(reference, config, downloading, artifact)) if is_remote(reference) else reference

    model, speculation, lora = app.model, app.speculation, app.lora
    if model.tokenizer is not None:
        model = replace(model, tokenizer=local(model.tokenizer, _TOKENIZER))
    if speculation.spec_model is not None:
        speculation = replace(speculation, spec_model=local(speculation.spec_model))
    given = speculation.speculative_config
    if given is not None and isinstance(given.get("model"), str):
        speculation = replace(speculation, speculative_config={**given, "model": local(given["model"])})
    modules = tuple(replace(module, path=local(module.path)) for module in lora.lora_modules)
    return replace(app, model=model, speculation=speculation, lora=replace(lora, lora_modules=modules))


def local_copy(reference: str, config: HubConfig, downloading: Downloading, artifact: Artifact = _WEIGHTS) -> Path:
    """Returns a folder of this machine with what a source has.

    Args:
        reference: a URI or ORG/NAME.
        config: where to store it, and how to get it.
        downloading: what to do if it is missing.
        artifact: which files.

    Raises:
        HubError: it cannot be had.
        NeedsDownloadError: it is missing and downloading is not allowed.
    """
    uri = as_uri(reference, uses_modelscope=config.network.uses_modelscope)
    assert uri is not None, "only what is_remote() is asked for"
    from vllm_mxext.hub.model_free import model_name  # noqa: PLC0415 - imports what only remote models need

    name = model_name(uri) if artifact is _WEIGHTS else f"{model_name(uri)}/{artifact.name}"
    entry = ModelEntry(name, sources=(uri,), artifacts=(artifact,))
    try:
        return obtain(Wish(entry, artifact), config, downloading)[0]
    except DownloadError as error:
        if "://" in reference:
            raise
        text = f"There is no '{reference}' on this machine, and as a name of a hub: {error}"
        raise DownloadError(text, cause=error.cause) from None
