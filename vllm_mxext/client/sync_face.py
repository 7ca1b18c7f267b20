"""`SyncFace`: an asynchronous client for callers without an event loop, by one thread that has one.

It works where the caller's thread runs a loop of its own, as in notebooks, and from several threads at once. After a
fork the child makes a thread of its own when it first needs one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
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
        call = _Call()
        try:  # from here on: an interrupt may come before there is a future to cancel
            return self._submit(call, coroutine).result()
        except concurrent.futures.CancelledError:
            coroutine.close()  # it may not have begun
            raise ClosedError("The client was closed while this request was under way.") from None
        except BaseException:
            if call.loop is None:
                coroutine.close()
            else:
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    call.loop.call_soon_threadsafe(call.cancel)
            raise

    def iterate(self, items: AsyncIterator[T]) -> Generator[T, None, None]:
        """Yields what an asynchronous iterator brings; it is closed when the generator is.

        It may be a few items ahead: a thread that asked for each alone would wait for another thread twice per item.
        """
        pump, call, pid = _Pump(items), _Call(), os.getpid()
        coroutine = pump.run()
        try:
            future = self._submit(call, coroutine)
        except BaseException:
            coroutine.close()
            raise
        future.add_done_callback(lambda _: pump.brought.put(None))
        try:
            while pid == os.getpid():
                part = pump.take(call.loop)
                if part is None:
                    future.result()
                    return
                yield part[0]
            raise ClosedError("This stream is that of the process that forked; begin one here.")
        except concurrent.futures.CancelledError:
            raise ClosedError("The client was closed while this request was under way.") from None
        finally:
            if pid == os.getpid() and not future.done():
                with contextlib.suppress(RuntimeError):  # the loop is closed
                    assert call.loop is not None
                    call.loop.call_soon_threadsafe(call.cancel)
                    if threading.current_thread() is not self._thread:
                        concurrent.futures.wait((future,), _JOIN_S)

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
        closing = close()
        try:
            ending = asyncio.run_coroutine_threadsafe(closing, loop)
        except RuntimeError:  # the loop has been closed in the meantime
            closing.close()
            return
        if threading.current_thread() is not self._thread:
            concurrent.futures.wait((ending,), _JOIN_S)

    def _submit(self, call: _Call, coroutine: Coroutine[Any, Any, T]) -> concurrent.futures.Future[T]:
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
                self._loop = asyncio.new_event_loop()
                self._thread = threading.Thread(
                    target=_serve, args=(self._loop,), name="vllm_mxext-client", daemon=True
                )
                self._thread.start()
                self._finalizer = weakref.finalize(self, _stop, self._pid, self._loop, self._thread, self._on_close)
            elif threading.current_thread() is self._thread:
                raise RuntimeError("The client's own thread cannot wait for itself; use AsyncVllmClient there.")
            # Under the lock: what is handed over after the loop's last task would be waited for in vain.
            call.loop = self._loop
            return asyncio.run_coroutine_threadsafe(_tracked(call, coroutine), self._loop)


class _Call:
    """A coroutine on its way to the loop, which can be cancelled before and after it has begun there."""

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self.task: asyncio.Task[Any] | None = None
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True
        if self.task is not None:
            self.task.cancel()


async def _tracked(call: _Call, coroutine: Coroutine[Any, Any, T]) -> T:
    if call.is_cancelled:
        coroutine.close()
        raise asyncio.CancelledError
    call.task = asyncio.current_task()
    return await coroutine


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
        part = self.brought.get()
        if self._is_waiting and loop is not None and self.brought.qsize() <= _MAX_AHEAD // 2:
            with contextlib.suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._has_room.set)
        return part


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
