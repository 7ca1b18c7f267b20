"""The unified test runner of the client: its suites, its files in `collected_results/`, its exit codes.

0: everything that was run passed; 1: something failed, or a file could not be written; 2: wrong usage; 130: it was
interrupted, and what had been found is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from pathlib import Path

from tests.client.checks import (
    FAILED,
    INTERRUPTED,
    PASSED,
    SKIPPED,
    STATUSES,
    Check,
    CheckResult,
    Target,
    run_checks,
)
from tests.client.server_checks import PERFORMANCE, REAL
from tests.client.standard_checks import STANDARD
from vllm_mxext.client.settings import ClientSettings
from vllm_mxext.errors import MxError

RESULTS = Path("collected_results")


@dataclass(frozen=True, slots=True)
class Suite:
    """Checks that are asked for together.

    Attributes:
        name: the flag's.
        title: for people.
        checks: of it.
        file_name: of its results; `{}` becomes date and time.
        skip_variable: set to `true`, it leaves the suite out.
    """

    name: str
    title: str
    checks: Sequence[Check]
    file_name: str
    skip_variable: str = ""


SUITES = (
    Suite("standard", "Standard API tests", STANDARD, "vllm_test_results.json"),
    Suite("performance", "Performance tests", PERFORMANCE, "vllm_performance_{}.json", "SKIP_PERFORMANCE_TESTS"),
    Suite("real", "Real connection tests", REAL, "vllm_connection_{}.json", "SKIP_REAL_TESTS"),
)


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Runs the suites that the flags name; returns the exit code."""
    environ = os.environ if environ is None else environ
    parser = _parser()
    options = parser.parse_args(argv)
    try:
        asked = {"base_url": options.api_url, "model": options.model, "timeout": options.timeout}
        settings = ClientSettings.read(asked, environ)
    except MxError as error:
        parser.error(str(error))
    chosen = [suite for suite in SUITES if options.all or getattr(options, suite.name)]
    if not chosen:
        parser.error("choose --standard, --performance, --real or --all")
    target = Target(settings.base_url, settings.model, settings.timeout or 30.0)
    try:
        return _run_all(chosen, target, environ)
    except OSError as error:
        _say(f"The results cannot be written: {error}")
        return 1


def _run_all(chosen: Sequence[Suite], target: Target, environ: Mapping[str, str]) -> int:
    stamp = datetime.now(timezone.utc).strftime("%Y%m%d_%H%M%S")
    summary: dict[str, dict[str, object]] = {}
    for suite in chosen:
        if environ.get(suite.skip_variable, "").lower() == "true":
            _say(f"{suite.title}: left out, as {suite.skip_variable} is true")
            summary[suite.name] = {"status": SKIPPED}
            continue
        summary[suite.name] = _run(suite, target, stamp)
        if summary[suite.name]["status"] == INTERRUPTED:
            break
    by_status = {status: [name for name, one in summary.items() if one["status"] == status] for status in STATUSES}
    words = "; ".join(f"{status}: {', '.join(names)}" for status, names in by_status.items() if names)
    path = _write(f"vllm_summary_{stamp}.json", {"api_url": target.url, "model": target.model, "suites": summary})
    _say(f"\nSummary: {words} ({path})")
    if by_status[INTERRUPTED]:
        return 130
    return 1 if by_status[FAILED] else 0


@contextmanager
def echo_target(target: Target) -> Iterator[Target]:
    """A server of our own over an engine that echoes prompts, in the place of the given one."""
    from tests.api.server_thread import ServerThread

    with ServerThread() as server:
        yield replace(target, url=server.url, model="fake-model")


def _run(suite: Suite, target: Target, stamp: str) -> dict[str, object]:
    _say(f"\n{suite.title}")
    if suite.name == "standard":
        with echo_target(target) as own:
            results = run_checks(suite.checks, own, _show)
        url, model = "our own server", own.model
    else:
        _say(f"  {target.url}, model {target.model}")
        results = run_checks(suite.checks, target, _show)
        url, model = target.url, target.model
    counts = {status: sum(one.status == status for one in results) for status in STATUSES}
    status = next(one for one in (INTERRUPTED, FAILED, PASSED) if counts[one] or one == PASSED)
    content = {
        "suite": suite.name,
        "status": status,
        "api_url": url,
        "model": model,
        "counts": counts,
        "checks": [{name: getattr(one, name) for name in CheckResult.__dataclass_fields__} for one in results],
    }
    path = _write(suite.file_name.format(stamp), content)
    _say(f"  {', '.join(f'{number} {name}' for name, number in counts.items())} ({path})")
    return {"status": status, "counts": counts, "file": str(path)}


def _show(result: CheckResult) -> None:
    name = result.name.replace("_", " ")
    _say(f"  {result.status:12}{name} ({result.duration_s:.2f} s){': ' + result.problem if result.problem else ''}")
    for figure, value in result.figures.items():
        _say(f"              {figure} {f'{value:.4g}' if isinstance(value, float) else value}")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _write(name: str, content: Mapping[str, object]) -> Path:
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / name
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="test_vllm_unified.py", description="Tests the client and a server with it.")
    parser.add_argument("--standard", action="store_true", help="the client, against a server of our own")
    parser.add_argument("--performance", action="store_true", help="times of single calls and batches at --api-url")
    parser.add_argument("--real", action="store_true", help="whether the server at --api-url answers")
    parser.add_argument("--all", action="store_true", help="all three")
    parser.add_argument("--model", help="model to ask for (default: $VLLM_MODEL, or whichever is served)")
    parser.add_argument("--api-url", help="server (default: $VLLM_API_URL, or http://localhost:8000)")
    parser.add_argument("--timeout", type=float, help="seconds of a call (default: $VLLM_TIMEOUT, or 30)")
    return parser
