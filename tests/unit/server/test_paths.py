"""The guards read paths exactly as the router does."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from starlette._utils import get_route_path

from vllm_mxext.server.middleware.paths import route_path

pieces = st.lists(st.sampled_from(["/", "a", "api", "health", "..", "%", ""]), max_size=6).map("".join)


@given(path=pieces, root_path=pieces)
def test_route_path_agrees_with_starlette(path, root_path):
    scope = {"path": path, "root_path": root_path}

    assert route_path(scope) == get_route_path(scope)
