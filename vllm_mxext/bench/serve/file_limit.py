"""Raises this process's limit of open files to what a load needs, or refuses the load."""

from __future__ import annotations

from vllm_mxext.bench.serve.plan import Plan
from vllm_mxext.errors import ConfigError

_WANTED = 65536
_OTHER_FILES = 64


def most_in_flight(plan: Plan) -> int:
    """Returns how many connections a plan opens at most; 1 where that depends on how fast the server answers."""
    if plan.load.sweep == "concurrency":
        return int(max(plan.load.sweep_levels, default=1))
    has_schedule = plan.load.request_rate > 0 or plan.load.sweep == "rate" or bool(plan.workload.trace)
    return 1 if has_schedule else plan.test_params.concurrent_requests


def allow_connections(count: int) -> None:
    """Raises this process's limit of open files as far as the system allows.

    Args:
        count: connections that are needed at once.

    Raises:
        ConfigError: the limit stays below what is needed.
    """
    try:
        import resource  # noqa: PLC0415 - not on Windows
    except ImportError:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return
    wanted = max(_WANTED, count + _OTHER_FILES)
    allowed = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if allowed > soft:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
            soft = allowed
        except (OSError, ValueError):
            pass  # the system has a lower limit of its own, which may still be enough
    if count + _OTHER_FILES > soft:
        raise ConfigError(
            f"{count:,} requests at once need as many connections, and this system allows {soft:,} open files; raise "
            "the limit with ulimit -n, or ask for fewer."
        )
