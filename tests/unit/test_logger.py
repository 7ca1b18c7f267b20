"""Logging is configured once from variables; lines carry the request id; mistakes are one clear sentence."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from vllm_mxext.errors import ConfigError
from vllm_mxext.logger import LogSettings, configure_logging, current_request_id, init_logger, request_context

NAME = "vllm_mxext.tests"


@pytest.fixture(autouse=True)
def restored_loggers() -> Iterator[None]:
    """Puts the loggers back as they were."""
    loggers = [logging.getLogger(name) for name in ("vllm_mxext", "uvicorn")]
    before = [(logger.level, logger.propagate, list(logger.handlers)) for logger in loggers]
    yield
    for logger, (level, propagate, handlers) in zip(loggers, before, strict=True):
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


def error_of(environ: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        configure_logging(LogSettings.from_environ(environ))
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.promise("LOG-1")
def test_lines_carry_the_request_id_of_their_context(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings())
    logger = init_logger(NAME)
    logger.info("outside")
    with request_context("req-1"):
        logger.info("%d tokens", 3)
    outside, inside = capsys.readouterr().err.splitlines()
    assert outside.startswith("INFO ")
    assert outside.endswith("] outside")
    assert inside.endswith("] req-1: 3 tokens")
    assert current_request_id() is None


async def test_concurrent_requests_do_not_see_each_others_ids() -> None:
    inside = {"a": asyncio.Event(), "b": asyncio.Event()}

    async def serve(request_id: str, other: str) -> str | None:
        with request_context(request_id):
            inside[request_id].set()
            await inside[other].wait()
            return current_request_id()

    assert await asyncio.gather(serve("a", "b"), serve("b", "a")) == ["a", "b"]


@pytest.mark.promise("LOG-1")
def test_jsonl_lines_are_objects_with_all_there_is_to_know(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging(LogSettings.from_environ({"VLLM_MXEXT_JSONL_LOGGING": "true"}))
    with request_context("req-1"):
        try:
            int("broken\nin two lines")
        except ValueError:
            init_logger(NAME).exception("it failed")
    (line,) = capsys.readouterr().err.splitlines()
    entry = json.loads(line)
    assert (entry["level"], entry["logger"], entry["message"]) == ("ERROR", NAME, "it failed")
    assert entry["request_id"] == "req-1"
    assert "ValueError: invalid literal" in entry["exception"]
    assert entry["time"].endswith("+00:00")


@pytest.mark.parametrize(
    ("environ", "level"),
    [
        ({}, "INFO"),
        ({"VLLM_LOGGING_LEVEL": "debug"}, "DEBUG"),
        ({"VLLM_MXEXT_LOG_LEVEL": "ERROR", "VLLM_LOGGING_LEVEL": "debug"}, "ERROR"),
        ({"VLLM_MXEXT_LOG_LEVEL": ""}, "INFO"),
    ],
)
@pytest.mark.promise("LOG-1")
def test_the_level_comes_from_our_variable_or_from_vllms(environ: dict[str, str], level: str) -> None:
    configure_logging(LogSettings.from_environ(environ))
    assert logging.getLevelName(init_logger(NAME).getEffectiveLevel()) == level


@pytest.mark.promise("LOG-1")
def test_configuration_can_be_switched_off() -> None:
    before = list(logging.getLogger("vllm_mxext").handlers)
    configure_logging(LogSettings.from_environ({"VLLM_MXEXT_CONFIGURE_LOGGING": "0"}))
    assert logging.getLogger("vllm_mxext").handlers == before


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
@pytest.mark.promise("LOG-1")
def test_a_configuration_file_replaces_the_built_in_one(
    tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = {
        "version": 1,
        "disable_existing_loggers": False,
        "filters": {"id": {"()": "vllm_mxext.logger.RequestIdFilter"}},
        "formatters": {"own": {"format": "own %(request_id)s %(message)s"}},
        "handlers": {"own": {"class": "logging.StreamHandler", "formatter": "own", "filters": ["id"]}},
        "loggers": {"vllm_mxext": {"handlers": ["own"], "level": "WARNING", "propagate": False}},
    }
    path = tmp_path / f"logging{suffix}"
    path.write_text(json.dumps(config))  # JSON is YAML too
    configure_logging(LogSettings.from_environ({"VLLM_MXEXT_LOGGING_CONFIG_PATH": str(path)}))
    with request_context("req-1"):
        init_logger(NAME).info("hidden")
        init_logger(NAME).warning("shown")
    assert capsys.readouterr().err == "own req-1 shown\n"


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("{", "neither valid JSON nor YAML"),
        ("[1]", "must hold one mapping"),
        ('{"version": 2}', "is not usable"),
        ('{"version": 1, "handlers": {"x": {"class": "no.such.Handler"}}}', "is not usable"),
    ],
)
def test_a_wrong_configuration_file_is_one_sentence(tmp_path: Path, content: str, part: str) -> None:
    path = tmp_path / "logging.json"
    path.write_text(content)
    message = error_of({"VLLM_MXEXT_LOGGING_CONFIG_PATH": str(path)})
    assert part in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("environ", "part"),
    [
        ({"VLLM_MXEXT_LOG_LEVEL": "LOUD"}, "VLLM_MXEXT_LOG_LEVEL must be one of DEBUG"),
        ({"VLLM_LOGGING_LEVEL": "LOUD"}, "VLLM_LOGGING_LEVEL must be one of DEBUG"),
        ({"VLLM_MXEXT_JSONL_LOGGING": "maybe"}, "VLLM_MXEXT_JSONL_LOGGING must be 1, true"),
        ({"VLLM_MXEXT_LOGGING_CONFIG_PATH": "nowhere.json"}, "'nowhere.json' cannot be read: No such file"),
        ({"VLLM_MXEXT_LOGGING_CONFIG_PATH": "x", "VLLM_MXEXT_CONFIGURE_LOGGING": "0"}, "exclude each other"),
    ],
)
def test_a_wrong_variable_is_one_sentence(environ: dict[str, str], part: str) -> None:
    assert part in error_of(environ)
