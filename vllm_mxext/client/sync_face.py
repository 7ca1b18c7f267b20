"""`SyncFace`: an asynchronous client for callers without an event loop, by one thread that has one.

It works where the caller's thread runs a loop of its own, as in notebooks, and from several threads at once. After a
fork the child makes a thread of its own when it first needs one.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import os
import threading
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Generator
from typing import Any, TypeVar

from vllm_mxext.client.errors import ClosedError

T = TypeVar("T")

_JOIN_S = 5.0
"""Waited for the thread at the end; it is a daemon, so that a program can end without it."""


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
        """Yields what an asynchronous iterator brings; it is closed when the generator is."""
        try:
            while True:
                try:
                    item = self.run(_next(items))
                except StopAsyncIteration:
                    return
                yield item
        finally:
            self.end(items)

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


async def _next(items: AsyncIterator[T]) -> T:
    return await anext(items)


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
