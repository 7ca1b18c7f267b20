"""The order in which waiting requests are served."""

from __future__ import annotations

import random

import pytest

from tests.unit.native.core.builders import make_request
from vllm_mxext.native.core.queue import FCFSQueue, PriorityQueue, make_queue
from vllm_mxext.native.core.request import Request


def requests(*keys: tuple[float, ...]) -> list[Request]:
    return [make_request(f"r{index}", order_key=key) for index, key in enumerate(keys)]


def drain(queue: FCFSQueue | PriorityQueue) -> list[str]:
    served = []
    while queue:
        served.append(queue.peek().request_id)
        queue.remove(queue.peek())
    return served


def test_each_policy_has_its_queue():
    assert isinstance(make_queue("fcfs"), FCFSQueue)
    assert isinstance(make_queue("priority"), PriorityQueue)


@pytest.mark.promise("CORE-6")
def test_fcfs_serves_in_the_order_of_adding():
    queue = FCFSQueue()
    for request in requests((2,), (0,), (1,)):
        queue.add(request)
    assert [request.request_id for request in queue] == ["r0", "r1", "r2"]
    assert drain(queue) == ["r0", "r1", "r2"]


def test_fcfs_serves_a_preempted_request_first():
    queue = FCFSQueue()
    first, second, preempted = requests((0,), (1,), (2,))
    queue.add(first)
    queue.add(second)
    queue.prepend(preempted)
    assert drain(queue) == ["r2", "r0", "r1"]


@pytest.mark.promise("CORE-6")
def test_priority_serves_the_smallest_key_first_however_it_came():
    queue = PriorityQueue()
    low, high, middle = requests((5, 0.0, 1), (-1, 3.0, 3), (5, 0.0, 0))
    queue.add(low)
    queue.add(high)
    queue.prepend(middle)
    assert [request.request_id for request in queue] == ["r1", "r2", "r0"]
    assert queue.peek() is high
    assert drain(queue) == ["r1", "r2", "r0"]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_a_removed_request_is_never_served(policy):
    queue = make_queue(policy)
    first, second, third = requests((0,), (1,), (2,))
    for request in (first, second, third):
        queue.add(request)
    queue.remove(first)
    queue.remove(third)
    assert len(queue) == 1
    assert list(queue) == [second]
    assert queue.peek() is second
    queue.remove(second)
    assert not queue


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_an_empty_queue_has_no_next_request(policy):
    queue = make_queue(policy)
    with pytest.raises(IndexError):
        queue.peek()
    with pytest.raises(KeyError):
        queue.remove(make_request())


def test_removed_requests_do_not_pile_up_in_the_heap():
    queue = PriorityQueue()
    queue.add(make_request("head", order_key=(0,)))
    for index in range(1000):
        request = make_request(str(index), order_key=(1 + index,))
        queue.add(request)
        queue.remove(request)
    assert len(queue._heap) < 50
    assert drain(queue) == ["head"]


def test_priority_order_survives_random_removals():
    rng = random.Random(3)
    queue, waiting = PriorityQueue(), []
    for index in range(300):
        request = make_request(str(index), order_key=(rng.randrange(5), index))
        queue.add(request)
        waiting.append(request)
        if rng.random() < 0.6:
            queue.remove(waiting.pop(rng.randrange(len(waiting))))
    assert drain(queue) == [request.request_id for request in sorted(waiting, key=lambda request: request.order_key)]


@pytest.mark.parametrize("policy", ["fcfs", "priority"])
def test_the_queue_counts_who_waits_for_which_adapter(policy):
    queue = make_queue(policy)
    first, second, base = (make_request(name, order_key=(index,)) for index, name in enumerate("abc"))
    first.adapter = second.adapter = (7, 1)
    for request in (first, second, base):
        queue.add(request)
    assert queue.adapters == {(7, 1): 2}
    queue.remove(first)
    queue.prepend(first)
    queue.remove(second)
    assert queue.adapters == {(7, 1): 1}
    queue.remove(first)
    assert not queue.adapters


def test_priority_lists_a_request_once_that_was_removed_and_came_back():
    queue = PriorityQueue()
    first, second, third = requests((0, 0.0, 1), (0, 0.0, 2), (0, 0.0, 3))
    for request in (first, second, third):
        queue.add(request)
    queue.remove(second)
    queue.prepend(second)
    assert list(queue) == [first, second, third]
    queue.remove(second)
    assert list(queue) == [first, third]
