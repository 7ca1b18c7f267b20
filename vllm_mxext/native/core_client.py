"""Ways to reach an engine core: in this process, or in a process of its own (no torch here until one is built)."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec
import zmq

from vllm_mxext.config.engine import EngineConfig
from vllm_mxext.errors import AdapterError
from vllm_mxext.native import core_messages as messages
from vllm_mxext.native.core_messages import CoreInfo
from vllm_mxext.native.process_work import is_at_work
from vllm_mxext.native.protocol import AdapterKey, AdapterUse, EngineCoreOutputs, EngineCoreRequest

if TYPE_CHECKING:
    from vllm_mxext.native.engine_core import EngineCore, ProgressReport

CORE_COMMAND = (sys.executable, "-m", "vllm_mxext.native.core_process")

_MAX_SOCKET_FOLDER_LENGTH = 70
_FAILURE_POLL_S = 0.01
_FAILURE_POLLS = 1_000
"""How often the last message of an ended core is looked for: turns, because time passes for stopped processes too."""


class CoreClient(Protocol):
    """What every engine core can be told."""

    def add_requests(self, requests: Sequence[EngineCoreRequest]) -> None:
        """Queues requests, in this order."""
        ...

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stops work on requests before the next step; unknown ids are ignored."""
        ...


@dataclass(frozen=True, slots=True)
class CoreExit:
    """How a core came to its end.

    Attributes:
        reason: one sentence, the root cause if the core could report it.
        is_config_error: the configuration is to blame; starting again cannot help.
    """

    reason: str
    is_config_error: bool = False


class CoreListener(Protocol):
    """Hears what a core says; called on the event loop, in order."""

    def on_core_message(self, message: messages.FromCore) -> None:
        """Takes one message."""
        ...

    def on_core_exit(self, exit_: CoreExit) -> None:
        """Takes the news that the core is gone; the last call."""
        ...


class AsyncCoreClient(CoreClient, Protocol):
    """One life of a core that works on its own and reports to a listener."""

    @property
    def is_at_work(self) -> bool:
        """Whether the core is seen to compute, although it may say nothing for long."""
        ...

    def start(self, listener: CoreListener) -> None:
        """Begins loading; needs a running event loop."""
        ...

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks; running requests keep theirs. Returns whether it was done."""
        ...

    def add_adapter(self, spec: messages.AdapterSpec, *, reads_now: bool) -> None:
        """Lets later requests name an adapter; what is wrong with its files is their error."""
        ...

    async def load_adapter(self, spec: messages.AdapterSpec) -> bool:
        """Reads an adapter and lets requests name it from then on; False if the core is gone before that is done.

        Raises:
            AdapterError: it cannot be read.
        """
        ...

    async def drop_adapter(self, key: AdapterKey) -> None:
        """Forgets an adapter that no open request names; returns when its memory is back."""
        ...

    async def stop(self) -> None:
        """Ends the core and waits until it is gone."""
        ...


class InprocCoreClient:
    """An engine core in this process, stepped by its owner.

    Args:
        config: the engine to load.
        report: told how loading goes.

    Raises:
        ConfigError: the engine cannot be loaded as configured.
    """

    def __init__(self, config: EngineConfig, report: ProgressReport | None = None) -> None:
        with _no_garbage_collection():
            from vllm_mxext.native.engine_builder import build_engine_core  # noqa: PLC0415 - imports torch

        self._core: EngineCore = build_engine_core(config, report or (lambda _phase, _fraction: None))

    @property
    def info(self) -> CoreInfo:
        """What is known once loaded."""
        return self._core.info

    @property
    def has_work(self) -> bool:
        """Whether `step()` has something to do."""
        return self._core.has_work

    def add_requests(self, requests: Sequence[EngineCoreRequest]) -> None:
        """Queues requests, in this order."""
        for request in requests:
            self._core.add_request(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stops work on requests; unknown ids are ignored."""
        self._core.abort(request_ids)

    def step(self) -> EngineCoreOutputs:
        """Runs one engine step."""
        return self._core.step()

    def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks; running requests keep theirs. Returns whether it was done."""
        return self._core.reset_prefix_cache()

    def load_adapter(self, spec: messages.AdapterSpec) -> list[AdapterUse]:
        """Reads an adapter, lets requests name it from then on, and returns how all adapters stand.

        Raises:
            AdapterError: it cannot be read.
        """
        return self._core.load_adapter(spec, reads_now=True)

    def drop_adapter(self, key: AdapterKey) -> list[AdapterUse]:
        """Forgets an adapter that no open request names, and returns how all others stand."""
        return self._core.drop_adapter(*key)


class ProcessCoreClient:
    """One life of a core process.

    The core is a child with a private socket and a pipe as standard input, whose end tells it that this process is
    gone. Its death is noticed by a thread waiting for it, so that nothing polls.

    Args:
        config: the engine to load.
        command: program and arguments to start; the socket's address and this process's id are appended.
        environ: environment of the child; this process's by default.
    """

    def __init__(
        self, config: EngineConfig, *, command: Sequence[str] = CORE_COMMAND, environ: Mapping[str, str] | None = None
    ) -> None:
        self._config = config
        self._command = tuple(command)
        self._environ = dict(os.environ if environ is None else environ)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(messages.FromCore)
        self._failure: messages.Failed | None = None
        self._calls: dict[int, asyncio.Future[messages.Answer | None]] = {}
        self._num_calls = 0
        self._has_exited = asyncio.Event()
        self._is_serving = False
        self._is_launched = False

    @property
    def process_id(self) -> int:
        """Process id of the core."""
        return self._process.pid

    @property
    def is_at_work(self) -> bool:
        """Whether the core computes on processors; one that waits for another device may do so in vain."""
        return self._config.device.device == "cpu" and is_at_work(self._process.pid)

    def launch(self) -> None:
        """Starts the process ahead of `start()`, without an event loop: it imports torch while this process goes on."""
        self._is_launched = True
        self._folder = _make_socket_folder()
        address = f"ipc://{self._folder / 'core'}"
        self._context = zmq.Context(io_threads=1)
        self._socket = self._context.socket(zmq.PAIR)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.RCVHWM, 0)
        self._socket.setsockopt(zmq.LINGER, 0)
        self._socket.bind(address)
        self._process = subprocess.Popen(
            [*self._command, address, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=2,
            env={**self._environ, **_child_environ(self._config)},
        )

    def start(self, listener: CoreListener) -> None:
        """Starts the process, or hears from then on the one that is launched; needs a running event loop."""
        self._loop = asyncio.get_running_loop()
        self._listener = listener
        if not self._is_launched:
            self.launch()
        self._loop.add_reader(self._socket.FD, self._on_readable)
        self._loop.call_soon(self._on_readable)
        self._waiter = threading.Thread(target=self._wait_for_exit, name="core-wait", daemon=True)
        self._waiter.start()

    def add_requests(self, requests: Sequence[EngineCoreRequest]) -> None:
        """Sends requests to the core; a core that is gone ignores them."""
        self._send(messages.AddRequests(list(requests)))

    def abort(self, request_ids: Sequence[str]) -> None:
        """Stops work on requests before the core's next step."""
        self._send(messages.Abort(list(request_ids)))

    async def reset_prefix_cache(self) -> bool:
        """Forgets cached blocks; running requests keep theirs. Returns whether it was done."""
        answer = await self._ask(messages.ResetPrefixCache)
        # The next core starts with an empty cache.
        return not isinstance(answer, messages.PrefixCacheReset) or answer.done

    def add_adapter(self, spec: messages.AdapterSpec, *, reads_now: bool) -> None:
        """Lets later requests name an adapter; what is wrong with its files is their error."""
        self._send(messages.LoadAdapter(0, spec, reads_now))

    async def load_adapter(self, spec: messages.AdapterSpec) -> bool:
        """Reads an adapter and lets requests name it from then on; False if the core is gone before that is done.

        Raises:
            AdapterError: it cannot be read.
        """
        answer = await self._ask(lambda call_id: messages.LoadAdapter(call_id, spec))
        if isinstance(answer, messages.AdapterDone) and answer.error is not None:
            raise AdapterError(answer.error, param="lora_path")
        return answer is not None

    async def drop_adapter(self, key: AdapterKey) -> None:
        """Forgets an adapter that no open request names; returns when its memory is back."""
        await self._ask(lambda call_id: messages.DropAdapter(call_id, *key))

    async def stop(self, grace_s: float = 2.0) -> None:
        """Ends the process: by message if it listens already, else, or `grace_s` later, by SIGKILL."""
        self._send(messages.Stop())
        if not self._is_serving or not await self._exits_within(grace_s):
            self.kill()
        await self._has_exited.wait()

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._process.kill()

    async def _exits_within(self, timeout_s: float) -> bool:
        try:
            await asyncio.wait_for(self._has_exited.wait(), timeout_s)
        except asyncio.TimeoutError:
            return False
        return True

    async def _ask(self, question: Callable[[int], messages.ToCore]) -> messages.Answer | None:
        """Sends a question and returns its answer; None if the core is gone."""
        if self._has_exited.is_set():
            await asyncio.sleep(0)  # the listener hears of it before the caller does
            return None
        self._num_calls += 1
        call: asyncio.Future[messages.Answer | None] = self._loop.create_future()
        self._calls[self._num_calls] = call
        self._send(question(self._num_calls))
        return await call

    def _answer(self, message: messages.Answer) -> None:
        call = self._calls.pop(message.call_id, None)
        if call is not None and not call.done():
            call.set_result(message)

    def _send(self, message: messages.ToCore) -> None:
        if self._has_exited.is_set():
            return
        with contextlib.suppress(zmq.Again):  # no peer: the core is gone, which the waiting thread is about to report
            self._socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        self._loop.call_soon(self._on_readable)  # sending can consume the readiness of the socket's file descriptor

    def _on_readable(self) -> None:
        while not self._has_exited.is_set():
            try:
                data = self._socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._take(self._decoder.decode(data))

    def _take(self, message: messages.FromCore) -> None:
        match message:
            case messages.Hello():
                shutil.rmtree(self._folder, ignore_errors=True)  # connected: nothing on disk is needed any more
                self._send(messages.Start(messages.encode_config(self._config)))
            case messages.Failed():
                self._failure = message
            case messages.PrefixCacheReset():
                self._answer(message)
            case messages.AdapterDone():
                self._loop.call_soon(self._listener.on_core_message, message)
                self._answer(message)
            case _:
                self._is_serving = self._is_serving or isinstance(message, messages.Ready)
                self._loop.call_soon(self._listener.on_core_message, message)

    def _wait_for_exit(self) -> None:
        code = self._process.wait()
        try:
            self._loop.call_soon_threadsafe(self._on_exit, code, _FAILURE_POLLS)
        except RuntimeError:  # the loop is closed: nobody is left to tell
            shutil.rmtree(self._folder, ignore_errors=True)

    def _on_exit(self, code: int, num_polls: int) -> None:
        self._on_readable()
        if code == messages.EXIT_REPORTED and self._failure is None and num_polls:
            self._loop.call_later(_FAILURE_POLL_S, self._on_exit, code, num_polls - 1)
            return
        self._has_exited.set()
        self._loop.remove_reader(self._socket.FD)
        self._socket.close()
        self._context.term()
        if self._process.stdin is not None:
            self._process.stdin.close()
        shutil.rmtree(self._folder, ignore_errors=True)
        self._loop.call_soon(self._listener.on_core_exit, self._describe_exit(code))
        for call in self._calls.values():
            if not call.done():
                call.set_result(None)
        self._calls.clear()

    def _describe_exit(self, code: int) -> CoreExit:
        if self._failure is not None:
            reason = f"{self._failure.error_type}: {self._failure.message}"
            return CoreExit(reason, self._failure.is_config_error)
        if code < 0:
            name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
            hint = "; the kernel does this when memory runs out" if -code == signal.SIGKILL else ""
            return CoreExit(f"The engine process was killed by {name}{hint}.")
        return CoreExit(f"The engine process exited with code {code}.")


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """For imports, which make no garbage: looking for it takes a tenth of the time that importing torch takes."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _make_socket_folder() -> Path:
    """Makes a folder that only this user can enter, with a path short enough for a Unix socket."""
    parent = tempfile.gettempdir()
    if len(parent) > _MAX_SOCKET_FOLDER_LENGTH:
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="vllm-mxext-", dir=parent))


def _child_environ(config: EngineConfig) -> dict[str, str]:
    """Variables that make the child import what this process would, and compute with the configured threads."""
    paths = [os.path.abspath(entry) for entry in sys.path]  # '' means the working directory
    return {
        "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths)),
        "PYTHONSAFEPATH": "1",
        "OMP_NUM_THREADS": str(config.device.num_threads),
    }
