"""`EngineArgs`: engine arguments by name, as the offline engines take them."""

from __future__ import annotations

from typing import Any

from vllm_mxext.config.app import from_arguments
from vllm_mxext.config.hub import needs_hub
from vllm_mxext.config.resolve import ResolvedConfig, resolve


class EngineArgs:
    """Engine arguments: the flags of `mxext serve` that concern the engine, with underscores.

    Attributes:
        arguments: name -> value as given.
    """

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def resolve(self) -> ResolvedConfig:
        """Looks up everything that was left open; a model that is not on this machine is downloaded.

        Raises:
            ConfigError: an argument is unknown or wrong, or the checkpoint is.
            HubError: the model's files cannot be had, or none of its profiles can run.
        """
        app = from_arguments(self.arguments)
        if needs_hub(app):
            from vllm_mxext.hub.mx_download import Downloading  # noqa: PLC0415
            from vllm_mxext.hub.progress_display import display  # noqa: PLC0415 - only those who need it pay for it
            from vllm_mxext.hub.startup import prepare  # noqa: PLC0415

            with display() as listener:
                app = prepare(app, Downloading(listener)).app
        return resolve(app)

    def __repr__(self) -> str:
        return f"EngineArgs({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"
