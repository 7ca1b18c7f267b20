"""`Asked`: a command line of `mxext hub`, merged with environment and file as that of `mxext serve` is."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import Any

from vllm_mxext.config.app import AppConfig, parse_serve_args
from vllm_mxext.config.hub import HubConfig, resolve_hub
from vllm_mxext.config.parser import Parser
from vllm_mxext.errors import ConfigError
from vllm_mxext.hub.entries import FoundModel, find_entry
from vllm_mxext.hub.hardware import Hardware

_ALIASES = (("goal", "--selection-goal"), ("profile", "--model-profile"))


@dataclass(frozen=True, slots=True)
class Asked:
    """What a command is asked for.

    Attributes:
        own: the command's own flags.
        app: all others; names the first model.
        config: the hub's settings among them.
        models: all models that the command line names.
    """

    own: argparse.Namespace
    app: AppConfig
    config: HubConfig
    models: tuple[str, ...] = ()

    @property
    def environ(self) -> Mapping[str, str]:
        """The variables that were read."""
        return self.config.network.environ

    def require_model(self) -> str:
        """Returns the model that is asked for.

        Raises:
            ConfigError: none is.
        """
        if self.app.model.model is None:
            raise ConfigError("Which model? Name it behind the command, or with MIM_MODEL_NAME.")
        return self.app.model.model

    def of(self, model: str) -> Asked:
        """Returns the same for another model."""
        return replace(self, app=replace(self.app, model=replace(self.app.model, model=model)))

    def find(self, *, may_download: bool = True, asks_again: bool = False) -> FoundModel:
        """Finds the model, as a start would; its source may be asked what it has.

        Args:
            may_download: it may.
            asks_again: what it answered before does not count.

        Raises:
            ConfigError: there is none, or the manifest is wrong.
            DownloadError: the source cannot be asked.
            NeedsDownloadError: it would have to be, and may not.
        """
        return find_entry(self.app, self.config, may_download=may_download, environ=self.environ, asks_again=asks_again)

    def hardware(self) -> Hardware:
        """Returns the machine that profiles are judged for.

        Raises:
            ConfigError: the file that describes it is wrong.
        """
        from vllm_mxext.hub.hardware_inspect import inspect_hardware, read_hardware  # noqa: PLC0415 - not all need it

        file = getattr(self.own, "hardware", None)
        return inspect_hardware(self.config.folder) if file is None else read_hardware(file.expanduser())

    def answer(self, value: Mapping[str, Any], text: str) -> None:
        """Prints the answer: a JSON object if that was asked for, otherwise a text."""
        print(json.dumps(value, ensure_ascii=False, indent=2) if self.own.json else text)


def read(parser: Parser, argv: Sequence[str]) -> Asked:
    """Reads a command line that names one model at most.

    Raises:
        ConfigError: a flag, variable or file is wrong.
    """
    own, flags = _own(parser, argv)
    return _asked(own, flags, parser.prog)


def read_models(parser: Parser, argv: Sequence[str]) -> Asked:
    """Reads a command line that names models in front of its flags.

    Raises:
        ConfigError: a flag, variable or file is wrong, or no model is named.
    """
    own, rest = _own(parser, argv)
    models = list(takewhile(lambda token: not token.startswith("-"), rest))
    asked = _asked(own, [*models[:1], *rest[len(models) :]], parser.prog)
    return replace(asked, models=tuple(models) or (asked.require_model(),))


def _own(parser: Parser, argv: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    own, rest = parser.parse_known_args(argv)
    for name, flag in _ALIASES:
        value = getattr(own, name, None)
        if isinstance(value, str):
            rest += [flag, value]
    return own, rest


def _asked(own: argparse.Namespace, flags: Sequence[str], prog: str) -> Asked:
    app = parse_serve_args(flags, prog=prog)
    for warning in app.warnings:
        print(f"mxext: warning: {warning}", file=sys.stderr)
    return Asked(own, app, resolve_hub(app, os.environ))
