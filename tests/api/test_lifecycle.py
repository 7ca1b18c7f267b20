"""From the open port to the end: signals, drain, start-up failures, ports and certificates."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.certificates import make_certificate
from vllm_mxext.config.server import LoRAModule, LoRAServingConfig, ServerConfig, TlsConfig
from vllm_mxext.engine.backends.fake import FakeEngineClient
from vllm_mxext.engine.client import EnginePhase
from vllm_mxext.errors import ConfigError, EngineDeadError
from vllm_mxext.server.app import create_app
from vllm_mxext.server.lifecycle import ServerProcess
from vllm_mxext.server.listen import check_tls, describe_socket, open_socket

STREAM: dict[str, Any] = {"prompt": "hello", "stream": True}


@pytest.mark.promise("OPS-5")
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
async def test_the_first_signal_lets_open_streams_finish_and_refuses_new_requests(server, signal_number):
    server.engine.hold()
    async with server.http.stream("POST", "/v1/completions", json=STREAM) as response:
        server.engine.release(2)
        lines = response.aiter_lines()
        received = [await anext(lines)]
        os.kill(os.getpid(), signal_number)
        await server.engine.wait_for(lambda: server.engine.status.phase is EnginePhase.DRAINING)

        refused = await server.http.post("/v1/completions", json=STREAM)
        ready = await server.http.get("/v1/health/ready")
        live = await server.http.get("/v1/health/live")
        server.engine.release()
        received += [line async for line in lines if line]

    assert (refused.status_code, ready.status_code, live.status_code) == (503, 503, 200)
    assert received[-1] == "data: [DONE]"
    assert '"finish_reason":"stop"' in received[-2]
    await server.task  # ends by itself and without an error: exit code 0
    assert server.engine.aborted == []
    assert server.engine.num_shutdowns == 1


async def test_a_non_streaming_request_is_finished_too(server):
    server.engine.hold()
    asking = asyncio.create_task(server.http.post("/v1/completions", json={"prompt": "hello"}))
    await server.engine.wait_for(lambda: server.engine.num_open == 1)
    server.process.handle_signal()
    server.engine.release()

    assert (await asking).json()["choices"][0]["text"] == "hello"
    await server.task


@pytest.mark.promise("OPS-5")
async def test_the_second_signal_aborts_what_is_open(server):
    server.engine.hold()
    async with server.http.stream("POST", "/v1/completions", json=STREAM) as response:
        await server.engine.wait_for(lambda: server.engine.num_open == 1)
        os.kill(os.getpid(), signal.SIGTERM)
        await server.engine.wait_for(lambda: server.engine.status.phase is EnginePhase.DRAINING)
        os.kill(os.getpid(), signal.SIGTERM)
        lines = [line async for line in response.aiter_lines() if line]

    assert '"finish_reason":"abort"' in lines[-2]
    assert lines[-1] == "data: [DONE]"
    await server.task
    assert len(server.engine.aborted) == 1


async def test_open_requests_are_aborted_when_the_timeout_is_over(serve):
    server = await serve(config=ServerConfig(shutdown_timeout_s=0.05))
    server.engine.hold()
    async with server.http.stream("POST", "/v1/completions", json=STREAM) as response:
        await server.engine.wait_for(lambda: server.engine.num_open == 1)
        server.process.handle_signal()
        lines = [line async for line in response.aiter_lines() if line]

    assert '"finish_reason":"abort"' in lines[-2]
    await server.task


async def test_a_signal_while_the_model_loads_ends_the_server(serve):
    server = await serve(FakeEngineClient(ready_on_start=False))
    server.process.handle_signal()

    await server.task
    assert server.engine.num_shutdowns == 1


@pytest.mark.promise("ENG-6")
async def test_a_start_up_failure_ends_the_server_with_the_root_cause(serve):
    server = await serve(FakeEngineClient(ready_on_start=False))
    server.engine.die("The file model.safetensors is cut off; download it again.")

    with pytest.raises(EngineDeadError, match=r"^The file model\.safetensors is cut off; download it again\.$"):
        await server.task


async def test_an_engine_that_is_lost_for_good_ends_the_server_with_the_cause(server):
    await server.http.get("/health")
    server.engine.die("It died 3 times in a row.")

    with pytest.raises(EngineDeadError, match="It died 3 times in a row"):
        await server.task


async def test_a_program_error_while_starting_is_not_swallowed():
    class BrokenEngine(FakeEngineClient):
        async def wait_until_ready(self) -> None:
            raise RuntimeError("a bug")

    config = ServerConfig(port=0)
    engine = BrokenEngine()
    process = ServerProcess(engine, create_app(engine, config), config, open_socket(config))

    with pytest.raises(RuntimeError, match="a bug"):
        await process.run()


def test_a_port_in_use_is_one_clear_sentence():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(ConfigError, match=rf"^Port {port} of 127\.0\.0\.1 is in use by another process; choose"):
            open_socket(ServerConfig(port=port))


def test_of_two_servers_that_start_at_once_on_one_port_the_second_ends_at_once():
    with open_socket(ServerConfig(port=0)) as sock, pytest.raises(ConfigError, match="is in use by another process"):
        open_socket(ServerConfig(port=sock.getsockname()[1]))


@pytest.mark.parametrize(
    ("host", "sentence"),
    [
        ("no-such-host.invalid", r"cannot be resolved: Name or service not known\."),
        ("label" * 20, r"cannot be resolved: .*too long"),
        ("192.0.2.1", "does not belong to this machine"),
    ],
)
def test_an_address_that_cannot_be_used_is_one_clear_sentence(host, sentence, monkeypatch):
    look_up = socket.getaddrinfo

    def without_network(host: str, *args: Any, **options: Any) -> Any:
        if host.endswith(".invalid"):
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return look_up(host, *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", without_network)
    with pytest.raises(ConfigError, match=sentence):
        open_socket(ServerConfig(host=host, port=0))


def test_addresses_are_described_as_urls():
    with open_socket(ServerConfig(port=0)) as sock:
        port = sock.getsockname()[1]
        assert describe_socket(sock, is_tls=False) == f"http://127.0.0.1:{port}"
        assert describe_socket(sock, is_tls=True) == f"https://127.0.0.1:{port}"


async def test_a_unix_socket_is_served_and_removed_at_the_end(serve, tmp_path):
    path = tmp_path / "server.sock"
    server = await serve(config=ServerConfig(uds=path))
    async with httpx.AsyncClient(transport=httpx.AsyncHTTPTransport(uds=str(path)), base_url="http://x") as http:
        assert (await http.get("/health")).status_code == 200

    server.process.handle_signal()
    await server.task
    assert not path.exists()


def test_a_unix_socket_left_by_a_killed_server_is_replaced_but_a_live_one_is_not(tmp_path):
    path = tmp_path / "server.sock"
    open_socket(ServerConfig(uds=path)).close()
    assert path.exists()

    with open_socket(ServerConfig(uds=path)), pytest.raises(ConfigError, match="another server listens there"):
        open_socket(ServerConfig(uds=path))


@pytest.fixture
def certificate(tmp_path) -> TlsConfig:
    return make_certificate(tmp_path)


async def test_https_is_served(serve, certificate):
    check_tls(certificate)
    server = await serve(config=ServerConfig(tls=certificate))
    trust = ssl.create_default_context(cafile=str(certificate.certfile))
    async with httpx.AsyncClient(verify=trust, base_url=f"https://127.0.0.1:{server.port}") as http:
        assert (await http.get("/health")).status_code == 200


def test_certificates_that_cannot_be_used_are_one_clear_sentence(tmp_path, certificate):
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    for tls in (
        TlsConfig(garbage),
        TlsConfig(certificate.certfile, garbage),
        TlsConfig(Path("/nowhere/cert.pem")),
    ):
        with pytest.raises(ConfigError, match=r"^The TLS certificate '.*' cannot be used: .*\.$"):
            check_tls(tls)
    with pytest.raises(ConfigError, match=r"^The CA file"):
        check_tls(TlsConfig(certificate.certfile, certificate.keyfile, garbage))


async def test_a_signal_while_adapters_are_loaded_ends_the_server_without_an_error(serve):
    class SlowEngine(FakeEngineClient):
        def __init__(self) -> None:
            super().__init__(max_loras=1)
            self.is_loading, self.is_gone = asyncio.Event(), asyncio.Event()

        async def load_adapter(self, *args: Any, **kwargs: Any) -> Any:
            self.is_loading.set()
            await self.is_gone.wait()
            raise EngineDeadError("The engine has been shut down.")

        async def shutdown(self, timeout_s: float = 0.0) -> None:
            self.is_gone.set()
            await asyncio.sleep(0)
            await super().shutdown(timeout_s)

    engine = SlowEngine()
    server = await serve(engine, ServerConfig(lora=LoRAServingConfig((LoRAModule("a", "/"),))))
    await engine.is_loading.wait()
    server.process.handle_signal()
    await server.task
