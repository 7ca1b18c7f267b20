"""The core process: one synchronous loop that owns the device, started by `ProcessCoreClient`."""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import msgspec
import zmq

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.errors import ConfigError
from vllm_mxext.logger import configure_logging, init_logger
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native.engine_core import EngineCore, ProgressReport

logger = init_logger(__name__)

IDLE_POLL_MS = 5_000
"""How often an idle core wakes up to say that it is alive and to see whether its parent is."""

_LINGER_MS = 60_000
"""How long the last messages may take to leave; without a front process to take them, this one ends at once."""

_PR_SET_PDEATHSIG = 1  # from linux/prctl.h

BuildCore = Callable[[EngineConfig, ProgressReport], EngineCore]
"""Makes the engine core."""


class FrontChannel:
    """The core's end of the socket to the front process.

    Sending never waits: what may pile up is bounded by the tokens that admitted requests can still produce.

    Args:
        address: ZeroMQ address the front process is bound to.
    """

    def __init__(self, address: str) -> None:
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.connect(address)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(messages.ToCore)

    def send(self, message: messages.FromCore) -> None:
        """Hands a message to the socket's background thread."""
        self._socket.send(self._encoder.encode(message))

    def receive(self, timeout_ms: int) -> list[messages.ToCore]:
        """Returns all messages that have come, after waiting up to `timeout_ms` for the first."""
        received: list[messages.ToCore] = []
        if self._socket.poll(timeout_ms):
            while True:
                try:
                    data = self._socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    break
                received.append(self._decoder.decode(data))
        return received

    def close(self) -> None:
        """Closes the socket after what was sent has left."""
        self._socket.close(linger=_LINGER_MS)
        self._context.term()


def serve(channel: FrontChannel, core: EngineCore, is_parent_alive: Callable[[], bool]) -> None:
    """Runs steps while there is work, sleeps in `poll` when there is none; returns on `Stop` or when orphaned."""
    while True:
        for message in channel.receive(0 if core.has_work else IDLE_POLL_MS):
            match message:
                case messages.AddRequests(requests):
                    for request in requests:
                        core.add_request(request)
                case messages.Abort(request_ids):
                    core.abort(request_ids)
                case messages.ResetPrefixCache(call_id):
                    channel.send(messages.PrefixCacheReset(call_id, core.reset_prefix_cache()))
                case messages.LoadAdapter(call_id, spec, reads_now):
                    core.begin_load_adapter(call_id, spec, reads_now=reads_now)
                case messages.DropAdapter(call_id, adapter_id, generation):
                    core.begin_drop_adapter(call_id, adapter_id, generation)
                case messages.Stop():
                    return
                case messages.Start():
                    raise AssertionError("the core has been started already")
        for answer in core.take_adapter_answers():
            channel.send(answer)
        if core.has_work:
            channel.send(messages.StepOutputs(core.step()))
        elif not is_parent_alive():
            return
        else:
            channel.send(messages.Alive())


def run(address: str, parent_id: int, get_build: Callable[[], BuildCore]) -> int:
    """Connects, loads the engine and serves it.

    Args:
        address: ZeroMQ address of the front process.
        parent_id: process id of the front process; the core does not outlive it.
        get_build: imports what makes the engine core; exceptions of both become the `Failed` message.

    Returns:
        The exit code.
    """

    def is_parent_alive() -> bool:
        return os.getppid() == parent_id

    channel = FrontChannel(address)
    channel.send(messages.Hello(os.getpid()))
    try:
        build = get_build()  # the configuration may be on its way still
        config = _receive_config(channel, is_parent_alive)
        if config is None:
            return 0
        die_with_parent()  # only now: before the connection stood, the socket's folder would have stayed behind
        core = build(config, _ProgressSender(channel))
        gc.freeze()
        gc.enable()
        channel.send(messages.Ready(core.info))
        serve(channel, core, is_parent_alive)
    except Exception as error:
        is_config_error = isinstance(error, ConfigError)
        if not is_config_error:
            logger.exception("The engine core failed.")
        text = str(error) or "no details were given"
        channel.send(messages.Failed(type(error).__name__, text, is_config_error))
        return messages.EXIT_REPORTED
    finally:
        channel.close()
    return 0


class _ProgressSender:
    """Sends start-up progress to the front, at most about a hundred messages per phase."""

    def __init__(self, channel: FrontChannel) -> None:
        self._channel = channel
        self._last: tuple[str, int] | None = None

    def __call__(self, phase: messages.StartPhase, fraction: float) -> None:
        percent = (phase, int(fraction * 100))
        if percent != self._last:
            self._last = percent
            self._channel.send(messages.Progress(phase, fraction))


def _receive_config(channel: FrontChannel, is_parent_alive: Callable[[], bool]) -> EngineConfig | None:
    while is_parent_alive():
        for message in channel.receive(IDLE_POLL_MS):
            if isinstance(message, messages.Start):
                return messages.decode_config(message.config)
            return None
    return None


def _native_build() -> BuildCore:
    from vllm_mxext.native.engine_builder import build_engine_core  # noqa: PLC0415 - imports torch, after `Hello`

    return build_engine_core


def exit_with_parent(address: str) -> None:
    """Ends this process at once when standard input closes, which happens however the front process ends.

    The front removes the socket's folder when the core has connected; here only if it died before.
    """
    folder = Path(address.removeprefix("ipc://")).parent

    def watch() -> NoReturn:
        while os.read(0, 4096):
            pass
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(0)

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()


def die_with_parent() -> None:
    """Asks the kernel to kill this process when the thread that started it ends; that ends a stopped process too."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main(get_build: Callable[[], BuildCore] = _native_build) -> NoReturn:
    """Entry point: `python -m vllm_mxext.native.core_process ADDRESS PARENT_ID`, with a pipe as standard input."""
    gc.disable()  # until the engine stands: looking for garbage takes a tenth of the time that importing torch takes
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole terminal; the front decides
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    address, parent_id = sys.argv[1:3]
    exit_with_parent(address)
    configure_logging()
    code = run(address, int(parent_id), get_build)
    logging.shutdown()
    os._exit(code)  # at once: a thread may be writing prepared weights, which is safe to cut off


if __name__ == "__main__":
    main()
