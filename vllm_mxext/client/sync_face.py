"""`SyncFace`: an asynchronous client for callers without an event loop, by one thread that has one.

It works where the caller's thread runs a loop of its own, as in notebooks, and from several threads at once. After a
fork the child makes a thread of its own when it first needs one.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import queue
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any, Generic, TypeVar

from vllm_mxext.client.errors import ClosedError

T = TypeVar("T")

_JOIN_S = 5.0
"""Waited for the thread at the end; it is a daemon, so that a program can end without it."""

_MAX_AHEAD = 16
"""Items of a stream that wait for the thread that goes through it."""

_LOOK_S = 0.1
"""How often the main thread looks for signals while it waits. One that comes in the microseconds before it waits, or to
another thread, does not wake it: Python only notes it, for the main thread's next instruction.
"""


class SyncFace:
    """Runs coroutines on a thread of its own. A context manager; it also ends with its last reference and the program.

    Args:
        on_close: awaited on the thread's loop at the end.
    """

    def __init__(self, on_close: Callable[[], Awaitable[None]] | None = None) -> None:
        self._on_close = on_close
        self._lock = threading.Lock()
        self._pid = os.getpid()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._finalizer: weakref.finalize[Any, SyncFace] | None = None
        self._abandoned: list[object] = []
        self._is_closed = False

    def __enter__(self) -> SyncFace:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Returns the result of a coroutine; an interrupt (Ctrl-C) of the waiting thread cancels it.

        Raises:
            ClosedError: the face has been closed.
            BaseException: what the coroutine raises.
        """
        call = _Call(coroutine)
        try:  # from here on: an interrupt may come before the coroutine has been handed over
            self._submit(call)
            return call.result()
        except asyncio.CancelledError:
            raise ClosedError("The client was closed while this request was under way.") from None
        finally:
            call.cancel()
            del call  # what it raises holds this frame

    def iterate(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """Yields what an asynchronous iterator brings; it is closed when the generator is.

        It may be a few items ahead: a thread that asked for each alone would wait for another thread twice per item.
        """
        pump, pid = _Pump(items), os.getpid()
        call = _Call(pump.run(), pump.end)
        try:
            self._submit(call)
            while pid == os.getpid():
                part = pump.take(call.loop)
                if part is None:
                    call.result()
                    return
                yield part[0]
            raise ClosedError("This stream is that of the process that forked; begin one here.")
        except asyncio.CancelledError:
            raise ClosedError("The client was closed while this request was under way.") from None
        finally:
            if pid == os.getpid() and call.cancel() and threading.current_thread() is not self._thread:
                call.wait(_JOIN_S)

    def close(self) -> None:
        """Ends the thread; what is under way is cancelled. More calls do nothing."""
        if self._pid != os.getpid():  # the lock may be held by a thread that has stayed in the parent
            self._is_closed = True
            return
        with self._lock:
            self._is_closed = True
            finalizer, self._finalizer = self._finalizer, None
        if finalizer is not None:
            finalizer()

    def end(self, items: AsyncIterator[Any]) -> None:
        """Closes an iterator, which may not have begun.

        Without waiting if this is the loop's thread, where a garbage collection may have led.
        """
        close = getattr(items, "aclose", None)
        loop = self._loop
        if close is None or loop is None or self._is_closed or loop.is_closed() or self._pid != os.getpid():
            return
        ending = _Call(close())
        try:
            ending.hand_over(loop)
        except RuntimeError:  # the loop has been closed in the meantime
            return
        if threading.current_thread() is not self._thread:
            ending.wait(_JOIN_S)

    def _submit(self, call: _Call[Any]) -> None:
        if self._pid != os.getpid():
            # The thread is the parent's, and its loop shares sockets and a selector with it: kept, and not touched.
            self._abandoned += [self._loop, self._thread, self._finalizer]
            self._lock = threading.Lock()
            self._loop = self._thread = self._finalizer = None
            self._pid = os.getpid()
        with self._lock:
            if self._is_closed:
                raise ClosedError("The client has been closed; make a new one.")
            if self._loop is None:
                loop = asyncio.new_event_loop()
                thread = threading.Thread(target=_serve, args=(loop,), name="vllm_mxext-client", daemon=True)
                self._finalizer = weakref.finalize(self, _stop, self._pid, loop, thread, self._on_close)
                thread.start()
                self._thread = thread
                self._loop = loop  # last: of a loop whose thread an interrupt has kept from starting nothing comes
            elif threading.current_thread() is self._thread:
                raise RuntimeError("The client's own thread cannot wait for itself; use AsyncVllmClient there.")
            # Under the lock: what is handed over after the loop's last task would be waited for in vain.
            call.hand_over(self._loop)


class _Call(Generic[T]):
    """A coroutine that the loop's thread runs for another one, which may be interrupted anywhere.

    In the place of `asyncio.run_coroutine_threadsafe()`, whose two futures tell each other of everything.

    Args:
        coroutine: run, or closed.
        on_end: called on the loop's thread.

    Attributes:
        loop: that runs it; None before it was handed over.
    """

    def __init__(self, coroutine: Coroutine[Any, Any, T], on_end: Callable[[], None] | None = None) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._coroutine = coroutine
        self._on_end = on_end
        self._task: asyncio.Task[T] | None = None
        self._running = threading.Lock()
        """Held until it has ended."""
        self._running.acquire()

    def hand_over(self, loop: asyncio.AbstractEventLoop) -> None:
        """Gives it to a loop.

        Raises:
            RuntimeError: the loop has been closed.
        """
        self.loop = loop
        try:
            loop.call_soon_threadsafe(self._begin)
        except RuntimeError:
            self._coroutine.close()
            raise

    def result(self) -> T:
        """Waits until it has ended, and returns or raises what it did."""
        self.wait()
        assert self._task is not None
        try:
            return self._task.result()
        finally:
            del self  # what is raised holds this frame

    def wait(self, timeout_s: float | None = None) -> None:
        """Waits until it has ended; not for ever, if a time is given."""
        if timeout_s is None:
            look_s = _look_s()
            while not self._running.acquire(timeout=-1 if look_s is None else look_s):
                pass
        elif not self._running.acquire(timeout=timeout_s):
            return
        self._running.release()

    def cancel(self) -> bool:
        """Ends it unless it has ended, without waiting; returns whether it has to be waited for."""
        if self.loop is None:
            self._coroutine.close()
            return False
        if self._task is not None and self._task.done():
            return False
        try:
            self.loop.call_soon_threadsafe(self._cancel)
        except RuntimeError:  # the loop is closed
            return False
        return True

    def _begin(self) -> None:
        assert self.loop is not None
        self._task = self.loop.create_task(self._coroutine)
        self._task.add_done_callback(self._end)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()
        else:  # an interrupt came before it was handed over
            self._coroutine.close()
            self._running.release()

    def _end(self, task: asyncio.Task[T]) -> None:
        if not task.cancelled():
            task.exception()  # what nobody waits for any more would be logged as forgotten
        self._running.release()
        if self._on_end is not None:
            self._on_end()


def _look_s() -> float | None:
    return _LOOK_S if threading.current_thread() is threading.main_thread() else None


class _Pump(Generic[T]):
    """Brings what an asynchronous iterator gives to a thread, and waits while that has enough to do.

    Args:
        items: the iterator; it is closed at the end.

    Attributes:
        brought: items, each in a tuple; None at the end.
    """

    def __init__(self, items: AsyncIterator[T]) -> None:
        self.brought: queue.SimpleQueue[tuple[T] | None] = queue.SimpleQueue()
        self._items = items
        self._is_waiting = False
        self._has_room = asyncio.Event()

    async def run(self) -> None:
        """Brings everything; for the loop's thread."""
        try:
            async for item in self._items:
                self.brought.put((item,))
                if self.brought.qsize() >= _MAX_AHEAD:
                    self._has_room.clear()
                    self._is_waiting = True  # before the second look: what is taken after it sets the event
                    if self.brought.qsize() >= _MAX_AHEAD:
                        await self._has_room.wait()
                    self._is_waiting = False
        finally:
            close = getattr(self._items, "aclose", None)
            if close is not None:
                await close()

    def take(self, loop: asyncio.AbstractEventLoop | None) -> tuple[T] | None:
        """Returns the next item as soon as there is one; for the other thread."""
        part = self._next()
        if self._is_waiting and loop is not None and self.brought.qsize() <= _MAX_AHEAD // 2:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._has_room.set)
        return part

    def end(self) -> None:
        """Tells the other thread that there is no more."""
        self.brought.put(None)

    def _next(self) -> tuple[T] | None:
        look_s = _look_s()
        while True:
            try:
                return self.brought.get(timeout=look_s)
            except queue.Empty:  # noqa: PERF203 - ten times a second
                pass


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        loop.close()


def _stop(
    pid: int,
    loop: asyncio.AbstractEventLoop,
    thread: threading.Thread,
    on_close: Callable[[], Awaitable[None]] | None,
) -> None:
    if os.getpid() != pid or loop.is_closed() or not thread.is_alive():
        return
    asyncio.run_coroutine_threadsafe(_wind_up(loop, on_close), loop)
    if threading.current_thread() is not thread:
        thread.join(_JOIN_S)


async def _wind_up(loop: asyncio.AbstractEventLoop, on_close: Callable[[], Awaitable[None]] | None) -> None:
    try:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if on_close is not None:
            await on_close()
        await loop.shutdown_asyncgens()
        await asyncio.sleep(0)  # who waits for a task that has just ended is told by a callback that is still to come
    finally:
        loop.stop()
