"""`Start`: a configuration whose model is on this machine, with what the hub knows of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.hub import needs_hub

if TYPE_CHECKING:  # a start from a folder imports nothing of the hub
    from vllm_mxext.hub.served_model import ServedModel
    from vllm_mxext.server.downloads import Downloads


class Start(NamedTuple):
    """What a server is started with.

    Attributes:
        app: the intent; its model, tokenizer and adapters are folders.
        served: how the hub came to it; None if it was not asked.
        downloads: what had to be downloaded for it; None if nothing had to.
    """

    app: AppConfig
    served: ServedModel | None = None
    downloads: Downloads | None = None


def stored_start(app: AppConfig) -> Start | None:
    """Returns what can be started at once; None if something has to be downloaded.

    Raises:
        ConfigError: there is no such model, or the manifest or profile is wrong.
        HubError: no profile can run, or files are missing and no connection may be opened.
    """
    if not needs_hub(app):
        return Start(app)
    from vllm_mxext.hub.mx_download import Downloading, NeedsDownloadError  # noqa: PLC0415
    from vllm_mxext.hub.startup import prepare  # noqa: PLC0415

    try:
        prepared = prepare(app, Downloading(is_allowed=False))
    except NeedsDownloadError:
        return None
    return Start(prepared.app, prepared.served)
