"""Logging: loggers for modules, one configuration per process, and the request id on every line."""

from __future__ import annotations

import contextlib
import json
import logging
import logging.config
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vllm_mxext import envs
from vllm_mxext.errors import ConfigError

_REQUEST_ID: ContextVar[str | None] = ContextVar("vllm_mxext_request_id", default=None)

_CONFIGURED_LOGGERS = ("vllm_mxext", "uvicorn")


@dataclass(frozen=True, slots=True)
class LogSettings:
    """How a process logs; picklable, so that a parent hands its own to its children.

    Attributes:
        is_enabled: configure logging at all.
        config_path: JSON or YAML file for `logging.config.dictConfig`; replaces the built-in configuration.
        level: least severe level that is logged.
        is_jsonl: one JSON object per line.
    """

    is_enabled: bool = True
    config_path: Path | None = None
    level: str = "INFO"
    is_jsonl: bool = False

    @classmethod
    def from_environ(
        cls, environ: Mapping[str, str] | None = None, *, config_path: str | Path | None = None
    ) -> LogSettings:
        """Reads the `VLLM_MXEXT_*` logging variables.

        Args:
            environ: variables to read instead of the process's environment.
            config_path: `--log-config-file`; wins over its variable.

        Raises:
            ConfigError: a value cannot be read, or a configuration file is named while logging is switched off.
        """
        chosen = Path(config_path) if config_path is not None else envs.LOGGING_CONFIG_PATH.get(environ)
        is_enabled = envs.CONFIGURE_LOGGING.get(environ)
        if chosen is not None and not is_enabled:
            raise ConfigError(
                f"{envs.CONFIGURE_LOGGING.name}=0 and the logging configuration file '{chosen}' exclude each other; "
                "remove one of them."
            )
        return cls(is_enabled, chosen, envs.LOG_LEVEL.get(environ), envs.JSONL_LOGGING.get(environ))


def init_logger(name: str) -> logging.Logger:
    """Returns the logger of the module `name`, which a module makes once at its top with `__name__`."""
    return logging.getLogger(name)


def configure_logging(settings: LogSettings | None = None) -> None:
    """Configures this process's logging; called once, by the entry point of a process.

    The offline API does not call it: there the application decides.

    Args:
        settings: how to log; read from the environment by default.

    Raises:
        ConfigError: the environment or the configuration file is wrong.
    """
    settings = LogSettings.from_environ() if settings is None else settings
    if not settings.is_enabled:
        return
    if settings.config_path is None:
        logging.config.dictConfig(_builtin_config(settings))
        return
    config = _read_config_file(settings.config_path)
    try:
        logging.config.dictConfig(config)
    except (ValueError, TypeError, AttributeError, ImportError) as error:
        cause = error.__cause__ or error
        raise ConfigError(f"Logging configuration file '{settings.config_path}' is not usable: {cause}.") from error


@contextlib.contextmanager
def request_context(request_id: str) -> Iterator[None]:
    """Puts `request_id` on every line logged inside the block (and in tasks started inside it)."""
    token = _REQUEST_ID.set(request_id)
    try:
        yield
    finally:
        _REQUEST_ID.reset(token)


def current_request_id() -> str | None:
    """Returns the request id of this context, if there is one."""
    return _REQUEST_ID.get()


class RequestIdFilter(logging.Filter):
    """Gives each record a `request_id` (empty outside requests), for use in one's own configuration files too."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Adds the attribute and lets every record pass."""
        if not hasattr(record, "request_id"):
            record.request_id = _REQUEST_ID.get() or ""
        return True


class TextFormatter(logging.Formatter):
    """`INFO 11-21 09:30:00.123 [scheduler.py:42] message`, with the request id before the message."""

    def __init__(self) -> None:
        super().__init__(
            "%(levelname)s %(asctime)s.%(msecs)03d [%(filename)s:%(lineno)d] %(message)s", "%m-%d %H:%M:%S"
        )

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - the name of the overridden method
        """Returns the line without exception text."""
        request_id = getattr(record, "request_id", "")
        if request_id:
            record.message = f"{request_id}: {record.message}"
        return super().formatMessage(record)


class JsonlFormatter(logging.Formatter):
    """One JSON object per line: time, level, logger, message, process, and request_id and exception where there are."""

    def format(self, record: logging.LogRecord) -> str:
        """Returns the line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "process": record.process,
        }
        request_id = getattr(record, "request_id", "")
        if request_id:
            entry["request_id"] = request_id
        if record.exc_info:
            entry["exception"] = self.formatException(record.exc_info)
        return json.dumps(entry, ensure_ascii=False)


def _builtin_config(settings: LogSettings) -> dict[str, Any]:
    formatter = JsonlFormatter if settings.is_jsonl else TextFormatter
    logger = {"handlers": ["stderr"], "level": settings.level, "propagate": False}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"request_id": {"()": RequestIdFilter}},
        "formatters": {"line": {"()": formatter}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "stream": "ext://sys.stderr",
                "formatter": "line",
                "filters": ["request_id"],
            }
        },
        "loggers": dict.fromkeys(_CONFIGURED_LOGGERS, logger),
    }


def _read_config_file(path: Path) -> dict[str, Any]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(f"Logging configuration file '{path}' cannot be read: {reason}.") from None
    try:
        config = json.loads(text) if path.suffix == ".json" else _parse_yaml(text)
    except ValueError as error:
        raise ConfigError(f"Logging configuration file '{path}' is neither valid JSON nor YAML: {error}.") from None
    if not isinstance(config, dict):
        raise ConfigError(
            f"Logging configuration file '{path}' must hold one mapping as for logging.config.dictConfig."
        )
    return config


def _parse_yaml(text: str) -> Any:
    import yaml  # noqa: PLC0415 - only processes with a YAML file pay for it

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error).replace("\n", " ")) from None
