"""`EngineArgs`: engine arguments by name, as the offline engines take them."""

from __future__ import annotations

from typing import Any

from vllm_mxext.config.resolve import ResolvedConfig, resolve_engine_args


class EngineArgs:
    """Engine arguments: the flags of `mxext serve` that concern the engine, with underscores.

    Attributes:
        arguments: name -> value as given.
    """

    def __init__(self, **arguments: Any) -> None:
        self.arguments = arguments

    def resolve(self) -> ResolvedConfig:
        """Looks up everything that was left open.

        Raises:
            ConfigError: an argument is unknown or wrong, or the checkpoint is.
        """
        return resolve_engine_args(**self.arguments)

    def __repr__(self) -> str:
        return f"EngineArgs({', '.join(f'{name}={value!r}' for name, value in self.arguments.items())})"
