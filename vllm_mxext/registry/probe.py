"""Asks a server about itself over HTTP: whether it is ready, which models it serves, how many requests it has."""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections.abc import Coroutine
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypeVar

from vllm_mxext.network_errors import reason_of

if TYPE_CHECKING:
    import httpx

T = TypeVar("T")

TIMEOUT_S = 10.0
"""In all, until it is known whether a server is ready: one that is busy, or on a busy machine, takes seconds."""

_CONNECT_S = 3.0
_READY_S = 3.0
_FIGURES_S = 3.0
"""Waited for what a server need not say."""

_MAX_BYTES = 8 * 2**20

_GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "llamacpp:requests_processing": "running",
    "llamacpp:requests_deferred": "waiting",
}
_GAUGE = re.compile(rf"^({'|'.join(_GAUGES)})(?:\{{[^}}]*\}})? ([0-9.eE+]+)$", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Probe:
    """Answers of a server.

    Attributes:
        is_reachable: whether anything answers HTTP at the address.
        is_ready: whether it serves requests.
        phase: what it is doing while it is not ready, as it says itself; empty if it does not say.
        problem: why it is not ready, in words; empty if it is.
        models: names of the models that it serves.
        version: its version; None if it does not say.
        running: requests that it is working on; None if it does not say.
        waiting: requests in its queue; None if it does not say.
    """

    is_reachable: bool = False
    is_ready: bool = False
    phase: str = ""
    problem: str = ""
    models: tuple[str, ...] = ()
    version: str | None = None
    running: int | None = None
    waiting: int | None = None


def probe(url: str, api_key: str | None = None, *, timeout_s: float = TIMEOUT_S) -> Probe:
    """Asks a server for everything that it tells.

    Args:
        url: address without `/v1`.
        api_key: key to present.
        timeout_s: how long it may take in all until it is known whether the server is ready.
    """
    import httpx  # noqa: PLC0415 - slow to import, and not every command asks

    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    is_local = re.match(r"https?://(127\.|localhost|\[::1\])", url) is not None
    try:
        client = httpx.AsyncClient(
            base_url=url,
            headers=headers,
            timeout=httpx.Timeout(None, connect=min(timeout_s, _CONNECT_S)),
            trust_env=not is_local,
            verify=not (is_local or url.lower().startswith("http://")),  # certificates are slow to load
        )
        return _run(_ask(client, timeout_s))
    except httpx.DecodingError:
        return Probe(is_reachable=True, problem=f"what answers at {url} cannot be decoded")
    except (httpx.LocalProtocolError, UnicodeError):  # whose texts repeat the key
        return Probe(problem="the key holds characters that no key may have; look at the variable of --api-key-env")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return Probe(problem=f"nothing answers at {url} ({reason_of(error)})")


def _run(asking: Coroutine[Any, Any, T]) -> T:
    """Returns what comes of it, as `asyncio.run()` does, but waits for no host's name that is still looked up."""
    loop = asyncio.new_event_loop()
    task = loop.create_task(asking)
    try:
        return loop.run_until_complete(task)
    finally:
        if not task.done():  # interrupted
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                loop.run_until_complete(task)
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _within(timeout_s: float, asking: Coroutine[Any, Any, T]) -> T:
    """Returns what is asked in time, however slowly it comes: the limits of `httpx` begin anew with every byte.

    Raises:
        httpx.ReadTimeout: it takes longer.
    """
    import httpx  # noqa: PLC0415

    try:
        return await asyncio.wait_for(asking, timeout_s)
    except asyncio.TimeoutError:
        raise httpx.ReadTimeout(f"no whole answer within {timeout_s:g} s") from None


async def _get(client: httpx.AsyncClient, path: str) -> httpx.Response:
    """Returns an answer that is no larger than any of a server that is one."""
    import httpx  # noqa: PLC0415

    content = bytearray()
    async with client.stream("GET", path) as answer:
        async for piece in answer.aiter_bytes():
            content += piece
            if len(content) > _MAX_BYTES:
                raise httpx.ReadError("its answer does not end")
    return httpx.Response(answer.status_code, content=bytes(content))


async def _ask(client: httpx.AsyncClient, timeout_s: float) -> Probe:
    import httpx  # noqa: PLC0415

    async with client:
        found = await _within(timeout_s, _state(client))
        if found.is_ready:
            with contextlib.suppress(httpx.HTTPError):
                found = replace(found, version=await _within(_FIGURES_S, _version(client)))
                figures = await _within(_FIGURES_S, _gauges(client))
                found = replace(found, running=figures.get("running"), waiting=figures.get("waiting"))
        return found


async def _state(client: httpx.AsyncClient) -> Probe:
    health = await _get(client, "/health")
    if health.status_code == 503:
        phase = _phase(health)
        return Probe(is_reachable=True, phase=phase, problem=f"not ready: {phase}" if phase else "not ready yet")
    listing = await _get(client, "/v1/models")
    if listing.status_code in (401, 403):
        return Probe(
            is_reachable=True, problem="the server wants another key; name the variable with it by --api-key-env"
        )
    try:
        entries = listing.json()["data"] if listing.is_success else None
        models = tuple(_plain(entry["id"]) for entry in entries) if entries is not None else ()
    except (ValueError, LookupError, TypeError, RecursionError):
        entries = None
    if entries is None:
        return Probe(
            is_reachable=True,
            problem=f"/v1/models answers {listing.status_code} and not like an OpenAI-compatible server",
        )
    return Probe(is_reachable=True, is_ready=True, models=models)


def is_ready(url: str, *, timeout_s: float = _READY_S) -> tuple[bool, str]:
    """Returns whether a server of this machine is ready, and otherwise what it does, as far as it says.

    Args:
        url: address without `/v1`.
        timeout_s: how long it may take in all.
    """
    import httpx  # noqa: PLC0415

    # Certificates are slow to load, and a server that loads a model needs the processor itself.
    client = httpx.AsyncClient(base_url=url, timeout=None, trust_env=False, verify=False)
    try:
        answer = _run(_within(timeout_s, _health(client)))
    except httpx.HTTPError:
        return False, ""
    return answer.is_success, _phase(answer)


async def _health(client: httpx.AsyncClient) -> httpx.Response:
    async with client:
        return await _get(client, "/health")


async def _version(client: httpx.AsyncClient) -> str | None:
    return _field(await _get(client, "/version"), "version") or None


async def _gauges(client: httpx.AsyncClient) -> dict[str, int]:
    answer = await _get(client, "/metrics")
    if not answer.is_success:
        return {}
    found: dict[str, int] = {}
    for name, value in _GAUGE.findall(answer.text):
        with contextlib.suppress(ValueError, OverflowError):
            found[_GAUGES[name]] = found.get(_GAUGES[name], 0) + int(float(value))
    return found


def _phase(answer: httpx.Response) -> str:
    """Returns what a server does while it is not ready; llama.cpp's says it as an error: "Loading model"."""
    phase = _field(answer, "phase")
    if phase or answer.status_code != 503:
        return phase
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        return _plain(answer.json()["error"]["message"])
    return ""


def _field(answer: httpx.Response, name: str) -> str:
    try:
        content = answer.json()
    except (ValueError, RecursionError):
        return ""
    return _plain(content.get(name, "")) if isinstance(content, dict) and answer.status_code in (200, 503) else ""


def _plain(text: object) -> str:
    """Returns what a server says without codes for terminals."""
    return "".join(one for one in str(text)[:200] if one.isprintable())
