"""The connection of `mxext chat`, `complete`, `lora` and `bench serve` to a running server."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Generator, Iterator
from typing import Any

import httpx

from vllm_mxext.client.sse import EventReader, MalformedEventError
from vllm_mxext.errors import ConfigError, MxError
from vllm_mxext.redaction import redact

DEFAULT_URL = "http://127.0.0.1:8000"
API_KEY_VARIABLE = "VLLM_API_KEY"


class ServerError(MxError):
    """The server could not be reached, or refused the request."""


class UnreachableError(ServerError):
    """No server answers at the address."""


def sampling_fields(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the request fields that the flags set."""
    fields = {name: getattr(arguments, name) for name in ("max_tokens", "temperature", "seed")}
    return {name: value for name, value in fields.items() if value is not None}


class Connection:
    """A connection to one server; a context manager.

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
            self._client = httpx.Client(base_url=address, headers=self.headers, timeout=timeout, trust_env=False)
        except httpx.InvalidURL as error:
            raise ConfigError(f"--url '{redact(url)}' is not an address: {error}.") from None

    def __enter__(self) -> Connection:
        """Returns itself."""
        return self

    def __exit__(self, *exc_info: object) -> None:
        """Closes the connection."""
        self._client.close()

    def first_model(self) -> str:
        """Returns the name of the first served model.

        Raises:
            ServerError: no server answers, or it refuses.
        """
        try:
            models = self.json("GET", "/v1/models")["data"]
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

    def json(self, method: str, path: str, body: dict[str, Any] | None = None) -> Any:
        """Sends a request and returns the JSON of its answer.

        Raises:
            ServerError: no server answers, or it refuses.
        """
        try:
            return self._request(method, path, body).json()
        except ValueError:
            raise ServerError(f"{self._url} does not answer like an OpenAI-compatible server.") from None

    def _request(self, method: str, path: str, body: dict[str, Any] | None) -> httpx.Response:
        try:
            response = self._client.request(method, path, json=body)
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
            with self._client.stream("POST", path, json={**body, "stream": True}) as response:
                if response.is_error:
                    response.read()
                    raise ServerError(_refusal(response))
                yield from _events(response)
        except httpx.TransportError as error:
            raise self._unreachable(error) from None

    def _unreachable(self, error: Exception) -> ServerError:
        if isinstance(error, (httpx.ConnectError, httpx.ConnectTimeout)):
            return UnreachableError(
                f"No server answers at {self._url} ({error}); start one with 'mxext serve', or name another with --url."
            )
        return UnreachableError(f"The connection to {self._url} broke: {error}.")


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    reader = EventReader()
    try:
        for piece in response.iter_bytes():  # not `iter_lines`, which also splits at characters that JSON may hold
            for event in reader.feed(piece):
                if event.data == "[DONE]":
                    return
                yield _parsed(event.data)
    except MalformedEventError as error:
        raise ServerError(f"The server sent a broken stream: {error}.") from None


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
