"""The connection of `mxext chat`, `complete`, `lora` and `bench serve` to a running server."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
from collections.abc import AsyncGenerator, Generator
from typing import Any

import httpx

from vllm_mxext.client.sse import EventReader, MalformedEventError
from vllm_mxext.client.sync_face import SyncFace
from vllm_mxext.errors import ConfigError, MxError
from vllm_mxext.network_errors import reason_of
from vllm_mxext.redaction import redact

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "VLLM_API_KEY"
_LIST_S = 10.0
"""A server says at once which models it has."""


class ServerError(MxError):
    """The server could not be reached, or refused the request."""


class UnreachableError(ServerError):
    """No server answers at the address."""


def sampling_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the request fields that the flags set."""
    fields = {name: getattr(arguments, name) for name in ("max_tokens", "temperature", "seed")}
    return {name: value for name, value in fields.items() if value is not None}


class Connection:
    """A connection to one server; a context manager. Whatever it waits for, Ctrl-C ends.

    Args:
        url: address of the server, with or without `/v1`.
        api_key: key to present; `$VLLM_API_KEY` by default.

    Attributes:
        headers: sent with every request.
    """

    def __init__(self, url: str, api_key: str | None) -> None:
        key = api_key or os.environ.get(API_KEY_VARIABLE)
        self.headers = {"Authorization": f"Bearer {key}"} if key else {}
        if not url.startswith(("http://", "https://")):
            raise ConfigError(f"--url must be an address such as {DEFAULT_URL}, got '{redact(url)}'.")
        address = url.rstrip("/").removesuffix("/v1")
        self._url = redact(address)
        # No read timeout: the server may queue a request, and sends keep-alive comments meanwhile.
        timeout = httpx.Timeout(10.0, read=None)
        try:
            client = httpx.AsyncClient(base_url=address, headers=self.headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url '{redact(url)}' is not an address: {error}.") from None
        self._client = client
        self._face = SyncFace(client.aclose)

    def __enter__(self) -> Connection:
        """Returns itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Closes the connection."""
        self._face.close()

    def first_model(self) -> str:
        """Returns the name of the first served model.

        Raises:
            ServerError: no server answers, or it refuses.
        """
        try:
            models = self.json("GET", "/v1/models", timeout_s=_LIST_S)["data"]
            if models == []:  # transformers' server lists only what has been downloaded
                raise ServerError(f"{self._url} lists no model; name the one that it serves.")
            return str(models[0]["id"])
        except (LookupError, TypeError):
            raise ServerError(f"{self._url} does not answer like an OpenAI-compatible server.") from None

    def tokenize(self, model: str, text: str) -> list[int]:
        """Returns the token ids of `text`.

        Raises:
            ServerError: no server answers, or it refuses.
        """
        tokens: list[int] = self.json("POST", "/tokenize", {"model": model, "prompt": text})["tokens"]
        return tokens

    def json(
        self, method: str, path: str, body: dict[str, Any] | None = None, *, timeout_s: float | None = None
    ) -> Any:
        """Sends a request and returns the JSON of its answer.

        Args:
            method: of HTTP.
            path: below the server's address.
            body: JSON.
            timeout_s: how long it may take in all, however slowly the answer comes; None = as long as it likes.

        Raises:
            ServerError: no server answers, or it refuses.
        """
        try:
            return self._request(method, path, body, timeout_s).json()
        except ValueError:
            raise ServerError(f"{self._url} does not answer like an OpenAI-compatible server.") from None

    def _request(self, method: str, path: str, body: dict[str, Any] | None, timeout_s: float | None) -> httpx.Response:
        async def request() -> httpx.Response:
            return await asyncio.wait_for(self._client.request(method, path, json=body), timeout_s)

        try:
            response = self._face.run(request())
        except asyncio.TimeoutError:
            raise UnreachableError(f"{self._url} did not answer within {timeout_s:g} s; look at its log.") from None
        except httpx.TransportError as error:
            raise self._unreachable(error) from None
        if response.is_error:
            raise ServerError(_refusal(response))
        return response

    def stream(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any], None, None]:
        """Posts `body` with `stream` on and yields the events; closing the generator aborts the request.

        Raises:
            ServerError: no server answers, it refuses, or the stream ends with an error.
        """
        try:
            yield from self._face.iterate(self._events(path, {**body, "stream": True}))
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    async def _events(self, path: str, body: dict[str, Any]) -> AsyncGenerator[dict[str, Any], None]:
        async with self._client.stream("POST", path, json=body) as response:
            if response.is_error:
                await response.aread()
                raise ServerError(_refusal(response))
            reader = EventReader()
            try:
                async for piece in response.aiter_bytes():  # not lines, which also end at characters that JSON may hold
                    for event in reader.feed(piece):
                        if event.data == "[DONE]":
                            return
                        yield _parsed(event.data)
            except MalformedEventError as error:
                raise ServerError(f"The server sent a broken stream: {error}.") from None

    def _unreachable(self, error: Exception) -> ServerError:
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return UnreachableError(
                f"No server answers at {self._url} ({reason_of(error)}); start one with 'mxext serve', or name another "
                "with --url."
            )
        return UnreachableError(f"The connection to {self._url} broke: {reason_of(error)}.")


def _parsed(data: str) -> dict[str, Any]:
    try:
        document = json.loads(data)
    except ValueError:
        document = None
    if not isinstance(document, dict):
        raise ServerError(f"The server sent a broken stream: an event is not a JSON object ({data[:200]!r}).")
    if document.get("error") is not None:
        raise ServerError(f"The server ended the stream: {_message(document)}")
    return document


def _refusal(response: httpx.Response) -> str:
    try:
        message = _message(response.json())
    except ValueError:
        message = response.text[:200]
    return f"The server answered {response.status_code}: {message}"


def _message(body: Any) -> str:
    error = body.get("error") if isinstance(body, dict) else None
    if isinstance(error, dict):
        error = error.get("message")
    return str(error if error is not None else body)
