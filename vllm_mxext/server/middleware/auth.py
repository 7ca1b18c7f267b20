"""API keys: every route asks for one, except those that are listed as open."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Collection, Iterator

from starlette.types import ASGIApp, Receive, Scope, Send

from vllm_mxext.server.errors import UnauthorizedError, describe
from vllm_mxext.server.middleware.paths import route_path

_KEY_HEADERS = (b"x-api-key", b"api-key")


class ApiKeyMiddleware:
    """Refuses requests without a valid key.

    Args:
        app: what is guarded.
        api_keys: keys of which one must be presented, as `Authorization: Bearer`, `x-api-key` or `api-key`.
        open_paths: paths that need no key.
    """

    def __init__(self, app: ASGIApp, api_keys: Collection[str], open_paths: Collection[str]) -> None:
        self._app = app
        self._hashes = [_hash(key.encode()) for key in api_keys]
        self._open_paths = frozenset(open_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Lets the request through or answers 401."""
        if scope["type"] == "lifespan" or route_path(scope) in self._open_paths or self._is_known(scope):
            await self._app(scope, receive, send)
            return
        error = UnauthorizedError(
            "A valid API key is needed; send one this server was started with, as `Authorization: Bearer <key>`."
        )
        await describe(error).response()(scope, receive, send)

    def _is_known(self, scope: Scope) -> bool:
        presented = [_hash(key) for key in _presented_keys(scope)]
        is_known = False
        for one in presented:  # every pair is compared, each in constant time: timing tells nothing about the keys
            for known in self._hashes:
                is_known |= hmac.compare_digest(one, known)
        return is_known


def _presented_keys(scope: Scope) -> Iterator[bytes]:
    for name, value in scope["headers"]:
        if name in _KEY_HEADERS:
            yield value.strip()
        elif name == b"authorization":
            scheme, _, credentials = value.strip().partition(b" ")
            if scheme.lower() == b"bearer":
                yield credentials.strip()


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()
