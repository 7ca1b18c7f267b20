"""`Batcher`: sends several items with equal parameters as one request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from vllm_mxext.client.clock import Clock
from vllm_mxext.client.errors import BadRequestError, ClosedError, ProtocolError
from vllm_mxext.client.numbers import check_numbers

KeyT = TypeVar("KeyT", bound=Hashable)
ItemT = TypeVar("ItemT")
ResultT = TypeVar("ResultT")

Send = Callable[[KeyT, Sequence[ItemT]], Awaitable[Sequence[ResultT]]]
"""Sends items with equal parameters; returns a result for each, in their order, or raises `NotTogetherError`."""


class NotTogetherError(Exception):
    """Raised by what sends a batch: its items may be answered one by one."""


@dataclass(slots=True, eq=False)
class _Entry(Generic[ItemT, ResultT]):
    item: ItemT
    result: asyncio.Future[ResultT]
    batch: _Batch[ItemT, ResultT]


@dataclass(slots=True, eq=False)
class _Batch(Generic[ItemT, ResultT]):
    """`task` is its timer while it collects, and what sends it afterwards; `rest` is set if it was sent before."""

    entries: list[_Entry[ItemT, ResultT]] = field(default_factory=list)
    task: asyncio.Task[None] | None = None
    rest: _Rest | None = None


@dataclass(slots=True)
class _Rest:
    """Items of one batch that were sent one by one and have no answer."""

    num_items: int


class Batcher(Generic[KeyT, ItemT, ResultT]):
    """Collects items by key until there are `max_size` of them or the first has waited `timeout_s`. For one event loop.

    A cancelled item leaves its batch; a batch whose items are all cancelled is cancelled. A batch that the server
    rejects (400) is halved and sent again until the invalid items are isolated with their error; one that is not
    answered as a whole is sent item by item; any other error goes to all items.

    Args:
        send: sends a batch.
        clock: time.
        max_size: items of a batch at most; can be changed.
        timeout_s: how long the first item waits for others; can be changed.
        on_batch: told the size of every batch that is sent.
        on_answered_alone: told when all items of a batch that was not answered as a whole were answered alone.

    Attributes:
        parts_wait: each part of a batch is sent when the one before has been answered, as the batch had one place.
    """

    def __init__(
        self,
        send: Send[KeyT, ItemT, ResultT],
        clock: Clock,
        *,
        max_size: int = 8,
        timeout_s: float = 0.1,
        on_batch: Callable[[int], None] | None = None,
        on_answered_alone: Callable[[], None] | None = None,
    ) -> None:
        check_numbers("a batcher", least=1, is_whole=True, max_batch_size=max_size)
        check_numbers("a batcher", batch_timeout=timeout_s)
        self.parts_wait = False
        self.max_size = max_size
        self.timeout_s = timeout_s
        self._send = send
        self._clock = clock
        self._on_batch = on_batch
        self._on_answered_alone = on_answered_alone
        self._open: dict[KeyT, _Batch[ItemT, ResultT]] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_closed = False

    @property
    def num_waiting(self) -> int:
        """Items that have not been sent."""
        return sum(len(batch.entries) for batch in self._open.values())

    async def add(self, key: KeyT, item: ItemT) -> ResultT:
        """Returns an item's result, or raises its error.

        Args:
            key: the parameters; only items with equal ones go together.
            item: what is asked.

        Raises:
            ClosedError: the batcher has been closed.
        """
        if self._is_closed:
            raise ClosedError("The client has been closed; make a new one.")
        batch = self._open.setdefault(key, _Batch())
        result: asyncio.Future[ResultT] = asyncio.get_running_loop().create_future()
        entry = _Entry(item, result, batch)
        batch.entries.append(entry)
        if len(batch.entries) >= self.max_size:
            self._flush(key, batch)
        elif batch.task is None:
            batch.task = self._start(self._flush_later(key, batch))
        try:
            return await result
        finally:
            self._leave(key, entry)

    async def close(self, *, flushes: bool = True) -> None:
        """Takes no more items, and returns when nothing is under way.

        Args:
            flushes: items that wait are sent and answered; otherwise they get a `ClosedError`, and what is under way is
                cancelled.
        """
        self._is_closed = True
        for key, batch in list(self._open.items()):
            if flushes:
                self._flush(key, batch)
            else:
                self._detach(key, batch)
                _fail(batch.entries, ClosedError("The client was closed before this request was sent."))
        if not flushes:
            for task in self._tasks:
                task.cancel()
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def _flush_later(self, key: KeyT, batch: _Batch[ItemT, ResultT]) -> None:
        await self._clock.sleep(self.timeout_s)
        batch.task = None
        self._flush(key, batch)

    def _flush(self, key: KeyT, batch: _Batch[ItemT, ResultT]) -> None:
        self._detach(key, batch)
        batch.task = self._start(self._deliver(key, batch))

    def _detach(self, key: KeyT, batch: _Batch[ItemT, ResultT]) -> None:
        """Takes a batch out of those that still collect."""
        if self._open.get(key) is batch:
            del self._open[key]
        if batch.task is not None:
            batch.task.cancel()
            batch.task = None

    def _leave(self, key: KeyT, entry: _Entry[ItemT, ResultT]) -> None:
        batch = entry.batch
        if self._open.get(key) is batch:
            batch.entries.remove(entry)
            if not batch.entries:
                self._detach(key, batch)
        elif batch.task is not None and all(other.result.done() for other in batch.entries):
            batch.task.cancel()

    def _start(self, coroutine: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _deliver(self, key: KeyT, batch: _Batch[ItemT, ResultT]) -> None:
        entries = [entry for entry in batch.entries if not entry.result.done()]
        if not entries:
            return
        if self._on_batch is not None:
            self._on_batch(len(entries))
        try:
            results = await self._send(key, [entry.item for entry in entries])
        except asyncio.CancelledError:
            _fail(entries, ClosedError("The client was closed while this request was under way."))
            raise
        except BadRequestError as error:
            if len(entries) == 1:
                _fail(entries, error)
                return
            middle = len(entries) // 2
            self._divide(key, [_Batch(entries[:middle]), _Batch(entries[middle:])])
        except NotTogetherError:
            rest = _Rest(len(entries))
            self._divide(key, [_Batch([entry], rest=rest) for entry in entries])
        except Exception as error:  # whatever it is, it is the callers', who must not wait for ever
            _fail(entries, error)
        else:
            if batch.rest is not None:
                batch.rest.num_items -= len(entries)
                if not batch.rest.num_items and self._on_answered_alone is not None:
                    self._on_answered_alone()
            _hand_out(entries, results)

    def _divide(self, key: KeyT, parts: Sequence[_Batch[ItemT, ResultT]]) -> None:
        for part in parts:
            for entry in part.entries:
                entry.batch = part
        if self.parts_wait:
            self._start(self._deliver_in_turn(key, parts))
        else:
            for part in parts:
                part.task = self._start(self._deliver(key, part))

    async def _deliver_in_turn(self, key: KeyT, parts: Sequence[_Batch[ItemT, ResultT]]) -> None:
        try:
            for part in parts:
                part.task = self._start(self._deliver(key, part))
                await asyncio.wait((part.task,))
        except asyncio.CancelledError:
            for part in parts:
                _fail(part.entries, ClosedError("The client was closed before this request was sent."))
            raise


def _hand_out(entries: Sequence[_Entry[ItemT, ResultT]], results: Sequence[ResultT]) -> None:
    if len(results) != len(entries):
        problem = f"The server gave {len(results)} answers to a batch of {len(entries)}; switch batching off for it."
        _fail(entries, ProtocolError(problem))
        return
    for entry, result in zip(entries, results, strict=True):
        if not entry.result.done():
            entry.result.set_result(result)


def _fail(entries: Sequence[_Entry[ItemT, ResultT]], error: Exception) -> None:
    for entry in entries:
        if not entry.result.done():
            entry.result.set_exception(error)
