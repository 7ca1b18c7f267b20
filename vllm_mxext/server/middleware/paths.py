"""Which route a request is for, in the words of the router."""

from __future__ import annotations

from starlette.routing import Match
from starlette.types import ASGIApp, Receive, Scope, Send

LIVE_PATH = "/v1/health/live"
READY_PATH = "/v1/health/ready"
HEALTH_PATH = "/health"
METRICS_PATH = "/metrics"
VERSION_PATH = "/v1/version"
DOWNLOADS_PATH = "/v1/hub/downloads"


class RootPathMiddleware:
    """Tells the application under which prefix a proxy publishes it, whether or not the proxy takes the prefix off.

    Args:
        app: the application.
        root_path: the prefix.
    """

    def __init__(self, app: ASGIApp, root_path: str) -> None:
        self._app = app
        self._root_path = root_path.rstrip("/")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sets the scope's `root_path`."""
        await self._app({**scope, "root_path": self._root_path}, receive, send)


def route_path(scope: Scope) -> str:
    """Returns the path below `root_path`, exactly as Starlette's router reads it.

    The guards decide by this path, so it must never differ from the one the router takes.
    """
    path: str = scope["path"]
    root_path: str = scope.get("root_path", "")
    if root_path and path == root_path:
        return ""
    if root_path and path.startswith(root_path + "/"):
        return path[len(root_path) :]
    return path


def route_template(scope: Scope) -> str:
    """Returns the template of the route that was taken or, if a guard answered before, that fits the path.

    `unmatched` if there is none: the set of values is bounded.
    """
    route = scope.get("route")
    if route is None:
        matching = (route for route in scope["app"].routes if route.matches(scope)[0] is not Match.NONE)
        route = next(matching, None)
    return str(getattr(route, "path", "unmatched"))
