"""Waiting queues: first come first served, and by priority."""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from collections import Counter, OrderedDict
from collections.abc import Iterator

from vllm_mxext.config.engine import SchedulingPolicy
from vllm_mxext.native.core.request import Request
from vllm_mxext.native.protocol import AdapterKey


class RequestQueue(ABC):
    """Requests waiting to be scheduled; every change takes O(log n) at most.

    Attributes:
        adapters: adapter -> waiting requests that name it.
    """

    def __init__(self) -> None:
        self.adapters: Counter[AdapterKey] = Counter()

    def add(self, request: Request) -> None:
        """Takes a new request."""
        self._add(request)
        self._count(request)

    def prepend(self, request: Request) -> None:
        """Takes a preempted request back, ahead of every request that is worse in the queue's order."""
        self._prepend(request)
        self._count(request)

    @abstractmethod
    def peek(self) -> Request:
        """Returns the next request and leaves it; raises IndexError when empty."""

    def remove(self, request: Request) -> None:
        """Takes out a request wherever it stands; raises KeyError if it is not in the queue."""
        self._remove(request)
        if request.adapter is not None:
            self.adapters[request.adapter] -= 1
            if not self.adapters[request.adapter]:
                del self.adapters[request.adapter]

    @abstractmethod
    def _add(self, request: Request) -> None: ...

    @abstractmethod
    def _prepend(self, request: Request) -> None: ...

    @abstractmethod
    def _remove(self, request: Request) -> None: ...

    def _count(self, request: Request) -> None:
        if request.adapter is not None:
            self.adapters[request.adapter] += 1

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[Request]:
        """Iterates in the order of service."""


class FCFSQueue(RequestQueue):
    """First come, first served.

    An ordered dictionary is a deque whose entries can also be removed from the middle in O(1).
    """

    def __init__(self) -> None:
        super().__init__()
        self._requests: OrderedDict[str, Request] = OrderedDict()

    def _add(self, request: Request) -> None:
        self._requests[request.request_id] = request

    def _prepend(self, request: Request) -> None:
        self._requests[request.request_id] = request
        self._requests.move_to_end(request.request_id, last=False)

    def peek(self) -> Request:
        """Returns the head and leaves it; raises IndexError when empty."""
        for request in self._requests.values():
            return request
        raise IndexError("The waiting queue is empty.")

    def _remove(self, request: Request) -> None:
        del self._requests[request.request_id]

    def __len__(self) -> int:
        return len(self._requests)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._requests.values())


class PriorityQueue(RequestQueue):
    """Smallest `Request.order_key` first; keys are unique.

    Removed requests stay in the heap until they come up or make up more than half of it.
    """

    _MIN_STALE_ENTRIES = 16

    def __init__(self) -> None:
        super().__init__()
        self._heap: list[tuple[tuple[float, ...], Request]] = []
        self._waiting: set[tuple[float, ...]] = set()

    def _add(self, request: Request) -> None:
        self._waiting.add(request.order_key)
        heapq.heappush(self._heap, (request.order_key, request))

    def _prepend(self, request: Request) -> None:
        self._add(request)  # its key is older than that of equal priority

    def peek(self) -> Request:
        """Returns the request with the smallest key and leaves it; raises IndexError when empty."""
        while self._heap and self._heap[0][0] not in self._waiting:
            heapq.heappop(self._heap)
        return self._heap[0][1]

    def _remove(self, request: Request) -> None:
        self._waiting.remove(request.order_key)
        if len(self._heap) > 2 * len(self._waiting) + self._MIN_STALE_ENTRIES:
            self._heap = [entry for entry in self._heap if entry[0] in self._waiting]
            heapq.heapify(self._heap)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        heap, last = self._heap.copy(), None
        while heap:
            key, request = heapq.heappop(heap)
            if key in self._waiting and key != last:  # who was removed and came back is there twice
                last = key
                yield request


def make_queue(policy: SchedulingPolicy) -> RequestQueue:
    """Returns an empty queue of the given policy."""
    return PriorityQueue() if policy == "priority" else FCFSQueue()
