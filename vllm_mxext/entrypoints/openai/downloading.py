"""Downloads what a server needs while its port is open already and tells how far that is."""

from __future__ import annotations

import importlib
import socket
import threading

from vllm_mxext.config.app import AppConfig
from vllm_mxext.config.server import ServerConfig
from vllm_mxext.entrypoints.starting import Start
from vllm_mxext.hub.mx_download import Downloading
from vllm_mxext.hub.progress import Listener, Progress
from vllm_mxext.hub.progress_display import display
from vllm_mxext.hub.startup import prepare
from vllm_mxext.server.downloads import Downloads
from vllm_mxext.server.preparing import StoppedError, serve_while

_NEXT = "vllm_mxext.entrypoints.openai.serving"


def downloaded_start(app: AppConfig, server: ServerConfig, sock: socket.socket) -> Start | None:
    """Returns what to start, everything of it on this machine; None if a signal came first.

    Args:
        app: the intent.
        server: how to listen and guard.
        sock: listening socket, which stays open.

    Raises:
        ConfigError: there is no such model, or the manifest or profile is wrong.
        HubError: the files cannot be had, or no profile can run.
    """
    downloads = Downloads()

    def work(listener: Listener, cancel: threading.Event) -> Start:
        with display() as show:

            def listen(progress: Progress) -> None:
                listener(progress)
                show(progress)

            prepared = prepare(app, Downloading(listen, cancel))
        return Start(prepared.app, prepared.served, downloads)

    # Beside the download, because connections wait for whatever is done between the two servers.
    threading.Thread(target=importlib.import_module, args=(_NEXT,), name="importing", daemon=True).start()
    try:
        return serve_while(work, server, sock, downloads)
    except StoppedError:
        return None
