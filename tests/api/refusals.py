"""Smallest requests, and checks of the error object that a refused one gets."""

from __future__ import annotations

from typing import Any

CHAT: dict[str, Any] = {"messages": [{"role": "user", "content": "hello"}]}
PLAIN: dict[str, Any] = {"prompt": "hello"}


def error_of(response: Any) -> dict[str, Any]:
    """The error object, after checking the fields it always has."""
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert set(body) == {"error"}
    error = body["error"]
    assert {"message", "type", "param", "code"} <= set(error)
    assert error["code"] == response.status_code
    assert error["message"]
    return error


async def refused(server: Any, path: str, body: dict[str, Any], status: int = 400) -> dict[str, Any]:
    response = await server.http.post(path, json=body)
    assert response.status_code == status, response.text
    return error_of(response)
