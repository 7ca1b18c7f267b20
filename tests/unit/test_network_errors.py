"""Why a connection failed is said in the system's words, whatever a library made of them."""

from __future__ import annotations

import errno
import socket
import ssl

import anyio
import httpx
import pytest

from tests.client.endpoints import closed_port
from vllm_mxext.network_errors import reason_of


def test_a_refused_connection_is_called_that_by_either_face_of_httpx() -> None:
    async def ask(url: str) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            await client.get(url)

    address = closed_port()
    for url in (address, address.replace("127.0.0.1", "localhost")):
        with pytest.raises(httpx.ConnectError) as sync:
            httpx.get(url, trust_env=False)
        with pytest.raises(httpx.ConnectError) as asynchronous:
            anyio.run(ask, url)
        assert reason_of(sync.value) == reason_of(asynchronous.value) == "Connection refused"


@pytest.mark.parametrize(
    ("cause", "reason"),
    [
        (OSError(errno.ECONNRESET, "something else"), "Connection reset by peer"),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), "Name or service not known"),
        (ssl.SSLError(1, "[SSL] bad certificate"), "it failed"),
        (ValueError("unrelated"), "it failed"),
    ],
)
def test_the_cause_says_why(cause: Exception, reason: str) -> None:
    error = RuntimeError("it failed.")
    error.__cause__ = cause
    assert reason_of(error) == reason


def test_an_error_without_words_is_named_by_its_kind() -> None:
    assert reason_of(EOFError()) == "EOFError"
