"""Micro-batches: what goes together, when it goes, and whose errors are whose."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from tests.client.fake_clock import FakeClock, settle
from vllm_mxext.client.batcher import Batcher, NotTogetherError
from vllm_mxext.client.errors import BadRequestError, ClosedError, ProtocolError, ServerError

pytestmark = pytest.mark.promise("CLIENT-16")


class Server:
    """Answers batches; what is poison to it is told by the items."""

    def __init__(self) -> None:
        self.batches: list[tuple[str, list[str]]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.num_cancelled = 0

    async def send(self, key: str, items: Sequence[str]) -> Sequence[str]:
        self.batches.append((key, list(items)))
        try:
            await self.gate.wait()
        except asyncio.CancelledError:
            self.num_cancelled += 1
            raise
        if "crash" in items:
            raise ServerError("It crashed.", status=500)
        if "bad" in items:
            raise BadRequestError("One is bad.", status=400)
        if "lost" in items:
            return [item.upper() for item in items if item != "lost"]
        if "long" in items:
            raise NotTogetherError if len(items) > 1 else ServerError("It is too long.", status=500)
        return [item.upper() for item in items]


async def begun(batcher: Batcher[str, str, str], *items: str, key: str = "k") -> list[asyncio.Task[str]]:
    tasks = [asyncio.ensure_future(batcher.add(key, item)) for item in items]
    await settle()
    return tasks


async def results(tasks: Sequence[asyncio.Task[str]]) -> list[Any]:
    return await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_lone_item_goes_when_its_time_is_up():
    clock, server = FakeClock(), Server()
    batcher = Batcher(server.send, clock, timeout_s=0.1)
    tasks = await begun(batcher, "a")
    await clock.advance(0.09)
    assert server.batches == []
    await clock.advance(0.01)
    assert await results(tasks) == ["A"]
    assert server.batches == [("k", ["a"])]


async def test_a_full_batch_goes_at_once_and_the_rest_with_the_timer():
    clock, server = FakeClock(), Server()
    sizes: list[int] = []
    batcher = Batcher(server.send, clock, max_size=3, on_batch=sizes.append)
    tasks = await begun(batcher, "a", "b", "c", "d")
    assert server.batches == [("k", ["a", "b", "c"])]
    await clock.advance(0.1)
    assert await results(tasks) == ["A", "B", "C", "D"]
    assert sizes == [3, 1]
    assert clock.num_sleepers == 0


async def test_the_timer_is_that_of_the_first_item():
    clock, server = FakeClock(), Server()
    batcher = Batcher(server.send, clock, timeout_s=0.1)
    tasks = await begun(batcher, "a")
    await clock.advance(0.08)
    tasks += await begun(batcher, "b")
    await clock.advance(0.02)
    assert await results(tasks) == ["A", "B"]


async def test_only_items_with_equal_parameters_go_together():
    clock, server = FakeClock(), Server()
    batcher = Batcher(server.send, clock, max_size=2)
    tasks = await begun(batcher, "a", key="hot") + await begun(batcher, "b", key="cold")
    assert server.batches == []
    tasks += await begun(batcher, "c", key="hot")
    assert server.batches == [("hot", ["a", "c"])]
    await clock.advance(0.1)
    assert await results(tasks) == ["A", "B", "C"]


async def test_changed_limits_hold_for_what_comes():
    server = Server()
    batcher = Batcher(server.send, FakeClock(), max_size=8)
    batcher.max_size = 1
    assert await results(await begun(batcher, "a")) == ["A"]


@pytest.mark.parametrize("parts_wait", [True, False])
async def test_a_batch_that_is_not_answered_as_a_whole_goes_item_by_item(parts_wait: bool):
    server, told = Server(), []
    batcher = Batcher(server.send, FakeClock(), max_size=3, on_answered_alone=lambda: told.append(1))
    batcher.parts_wait = parts_wait
    first, second, third = await results(await begun(batcher, "a", "long", "c"))
    assert (first, third) == ("A", "C")
    assert isinstance(second, ServerError)
    assert [items for _, items in server.batches] == [["a", "long", "c"], ["a"], ["long"], ["c"]]
    assert told == []


async def test_an_item_that_is_answered_alone_waits_for_none_of_its_batch():
    server, hangs = Server(), asyncio.Event()

    async def send(key: str, items: Sequence[str]) -> Sequence[str]:
        if len(items) > 1:
            raise NotTogetherError
        if items == ["slow"]:
            await hangs.wait()
        return await server.send(key, items)

    told: list[int] = []
    batcher = Batcher(send, FakeClock(), max_size=2, on_answered_alone=lambda: told.append(1))
    slow, quick = await begun(batcher, "slow", "quick")
    assert await quick == "QUICK"
    assert (slow.done(), told) == (False, [])
    hangs.set()
    assert await slow == "SLOW"
    assert told == [1]


async def test_a_batch_that_the_server_calls_wrong_is_halved_until_the_wrong_item_is_alone():
    server = Server()
    tasks = await begun(Batcher(server.send, FakeClock(), max_size=4), "a", "b", "bad", "d")
    outcomes = await results(tasks)
    assert isinstance(outcomes.pop(2), BadRequestError)
    assert outcomes == ["A", "B", "D"]
    assert len(server.batches) == 5


async def test_a_failure_of_the_server_is_everybodys_and_is_not_repeated_here():
    server = Server()
    outcomes = await results(await begun(Batcher(server.send, FakeClock(), max_size=2), "a", "crash"))
    assert [type(outcome) for outcome in outcomes] == [ServerError, ServerError]
    assert len(server.batches) == 1


async def test_a_wrong_number_of_answers_is_an_error_for_all_as_nobody_knows_whose_they_are():
    outcomes = await results(await begun(Batcher(Server().send, FakeClock(), max_size=2), "a", "lost"))
    assert [type(outcome) for outcome in outcomes] == [ProtocolError, ProtocolError]
    assert "1 answers to a batch of 2" in str(outcomes[0])


async def test_a_cancelled_item_leaves_its_batch():
    clock, server = FakeClock(), Server()
    batcher = Batcher(server.send, clock, max_size=3)
    first, second = await begun(batcher, "a", "b")
    first.cancel()
    await settle()
    assert batcher.num_waiting == 1
    third, fourth = await begun(batcher, "c", "d")
    assert await results([second, third, fourth]) == ["B", "C", "D"]
    assert server.batches == [("k", ["b", "c", "d"])]


async def test_a_batch_that_everybody_has_left_is_not_sent():
    clock, server = FakeClock(), Server()
    batcher = Batcher(server.send, clock)
    tasks = await begun(batcher, "a", "b")
    for task in tasks:
        task.cancel()
    await results(tasks)
    await settle()
    assert clock.num_sleepers == 0, "Its timer would cut the next batch's time short."
    await clock.advance(1.0)
    assert server.batches == []


async def test_an_item_cancelled_on_the_way_does_not_disturb_the_others_and_the_last_one_stops_the_request():
    server = Server()
    server.gate.clear()
    first, second = await begun(Batcher(server.send, FakeClock(), max_size=2), "a", "b")
    first.cancel()
    await settle()
    assert server.num_cancelled == 0
    second.cancel()
    await settle()
    assert server.num_cancelled == 1


async def test_a_half_that_everybody_has_left_is_stopped_although_the_other_half_is_wanted():
    server = Server()

    async def send(key: str, items: Sequence[str]) -> Sequence[str]:
        if len(items) == 4:
            server.gate.clear()
            raise BadRequestError("One is bad.", status=400)
        return await server.send(key, items)

    tasks = await begun(Batcher(send, FakeClock(), max_size=4), "a", "b", "c", "d")
    assert server.batches == [("k", ["a", "b"]), ("k", ["c", "d"])]
    for task in tasks[:2]:
        task.cancel()
    await settle()
    assert server.num_cancelled == 1
    server.gate.set()
    assert await results(tasks[2:]) == ["C", "D"]


async def test_closing_sends_what_waits_and_returns_when_it_is_answered():
    server = Server()
    batcher = Batcher(server.send, FakeClock())
    tasks = await begun(batcher, "a", "b")
    await batcher.close()
    assert await results(tasks) == ["A", "B"]
    with pytest.raises(ClosedError):
        await batcher.add("k", "c")


async def test_closing_without_sending_tells_everybody():
    server = Server()
    server.gate.clear()
    batcher = Batcher(server.send, FakeClock(), max_size=2)
    tasks = await begun(batcher, "sent", "sent too", "waiting")
    await batcher.close(flushes=False)
    outcomes = await results(tasks)
    assert [type(outcome) for outcome in outcomes] == [ClosedError, ClosedError, ClosedError]
    assert "under way" in str(outcomes[0])
    assert "before this request was sent" in str(outcomes[2])


async def test_where_nothing_may_wait_the_halves_of_a_refused_batch_go_one_after_the_other():
    server, under_way = Server(), []
    most = 0

    async def send(key: str, items: Sequence[str]) -> Sequence[str]:
        nonlocal most
        under_way.append(items)
        most = max(most, len(under_way))
        await asyncio.sleep(0)
        try:
            return await server.send(key, items)
        finally:
            under_way.remove(items)

    batcher: Batcher[str, str, str] = Batcher(send, FakeClock(), max_size=8)
    batcher.parts_wait = True
    got = await results(await begun(batcher, "a", "b", "bad", "c", "d", "e", "f", "g"))
    assert [one if isinstance(one, str) else type(one) for one in got] == [*"AB", BadRequestError, *"CDEFG"]
    assert most == 1


async def test_halves_that_wait_end_with_the_batcher():
    server = Server()
    batcher: Batcher[str, str, str] = Batcher(server.send, FakeClock(), max_size=2)
    batcher.parts_wait = True
    tasks = await begun(batcher, "bad", "a")
    server.gate.clear()
    tasks = await begun(batcher, "bad", "a", key="other")
    server.gate.set()
    await settle(3)
    server.gate.clear()
    await batcher.close(flushes=False)
    assert all(isinstance(one, (ClosedError, BadRequestError)) for one in await results(tasks))
