"""The synchronous face: threads, running loops, forks, interrupts, the end."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import warnings
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from tests.client.endpoints import chat, endpoint, pipeline
from tests.client.fault_server import FaultServer, delta, healthy, stream
from vllm_mxext.client.errors import ClosedError, StreamInterruptedError
from vllm_mxext.client.sync_face import SyncFace
from vllm_mxext.client.sync_namespaces import SyncStream
from vllm_mxext.client.vllm_client import VllmClient

pytestmark = pytest.mark.promise("CLIENT-7")


async def double(number: int) -> int:
    await asyncio.sleep(0)
    return 2 * number


async def numbers(ended: list[bool]) -> AsyncGenerator[int, None]:
    try:
        for number in range(3):
            yield number
    finally:
        ended.append(True)


_OTHERS: set[threading.Thread] = set()
"""Threads of clients that other tests have not closed."""


@pytest.fixture(autouse=True)
def others() -> Iterator[None]:
    gc.collect()
    _OTHERS.update(threads())
    yield
    _OTHERS.clear()


def threads() -> list[threading.Thread]:
    found = [thread for thread in threading.enumerate() if thread.name == "vllm_mxext-client"]
    return [thread for thread in found if thread not in _OTHERS]


def test_results_and_errors_come_through() -> None:
    async def fail() -> None:
        raise ValueError("no")

    with SyncFace() as face:
        assert face.run(double(2)) == 4
        with pytest.raises(ValueError, match="no"):
            face.run(fail())


def test_it_makes_no_thread_before_it_is_needed() -> None:
    before = threads()
    with SyncFace():
        assert threads() == before


async def test_it_works_where_a_loop_runs_already() -> None:
    with SyncFace() as face:
        assert face.run(double(2)) == 4


def test_several_threads_share_it() -> None:
    with SyncFace() as face, ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda number: face.run(double(number)), range(50))) == [2 * n for n in range(50)]
        assert len(threads()) == 1


def test_an_iteration_ends_its_source_when_it_is_left() -> None:
    with SyncFace() as face:
        ended: list[bool] = []
        assert list(face.iterate(numbers(ended))) == [0, 1, 2]
        for number in face.iterate(numbers(ended)):
            if number == 1:
                break
        gc.collect()
        assert ended == [True, True]


def test_closing_cancels_what_is_under_way_and_joins_the_thread() -> None:
    closed: list[bool] = []

    async def on_close() -> None:
        closed.append(True)

    face = SyncFace(on_close)
    begun = threading.Event()

    async def wait() -> None:
        begun.set()
        await asyncio.Event().wait()

    with ThreadPoolExecutor(1) as pool:
        call = pool.submit(lambda: face.run(wait()))
        begun.wait()
        face.close()
        with pytest.raises(ClosedError, match="while this request was under way"):
            call.result()
    face.close()
    assert closed == [True]
    assert threads() == []
    with pytest.raises(ClosedError, match="make a new one"):
        face.run(double(1))


def test_the_last_reference_ends_the_thread_without_warnings() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        face = SyncFace()
        face.run(double(1))
        del face
        gc.collect()
        assert threads() == []


def test_its_own_thread_is_told_not_to_wait_for_itself() -> None:
    with SyncFace() as face:

        async def inner() -> None:
            face.run(double(1))

        with pytest.raises(RuntimeError, match="cannot wait for itself"):
            face.run(inner())


def test_an_interrupt_cancels_the_call() -> None:
    cancelled = threading.Event()
    main = threading.get_ident()

    async def wait() -> None:
        signal.pthread_kill(main, signal.SIGINT)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    with SyncFace() as face:
        with pytest.raises(KeyboardInterrupt):
            face.run(wait())
        assert cancelled.wait(60.0)


def test_an_interrupt_that_does_not_wake_the_thread_that_waits_is_noticed() -> None:
    def interrupt() -> None:
        """As one that comes in the moment before the main thread waits: it is only noted."""
        signal.pthread_kill(threading.get_ident(), signal.SIGINT)

    async def wait() -> None:
        interrupt()
        await asyncio.Event().wait()

    async def one() -> AsyncGenerator[int, None]:
        yield 1
        await wait()

    with SyncFace() as face:
        with pytest.raises(KeyboardInterrupt):
            face.run(wait())
        items = face.iterate(one())
        with pytest.raises(KeyboardInterrupt):
            list(items)
        assert face.run(double(1)) == 2


def test_an_interrupt_of_the_first_call_leaves_a_face_that_works(monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(threading.Thread):
        def start(self) -> None:
            monkeypatch.undo()
            raise KeyboardInterrupt

    with SyncFace() as face:
        monkeypatch.setattr("threading.Thread", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            face.run(double(1))
        assert face.run(double(2)) == 4


def test_calls_that_come_while_it_is_closed_end() -> None:
    for _ in range(30):
        face = SyncFace()
        face.run(double(1))
        ended: list[int | type[BaseException]] = []

        def call(face: SyncFace = face, ended: list[int | type[BaseException]] = ended) -> None:
            try:
                while True:
                    face.run(double(1))
            except ClosedError:
                ended.append(ClosedError)

        callers = [threading.Thread(target=call, daemon=True) for _ in range(4)]
        for caller in callers:
            caller.start()
        face.close()
        for caller in callers:
            caller.join(60.0)
        assert ended == [ClosedError] * 4


def test_a_stream_that_is_closed_unread_gives_its_place_back() -> None:
    with SyncFace() as other:
        server = FaultServer([stream(delta("a"), end="stall")])
        other.run(server.__aenter__())
        with VllmClient(base_url=server.url) as client:
            chunks = client.chat.completions.create(model="m", messages=[], stream=True)
            assert isinstance(chunks, SyncStream)
            assert client.current_requests == 1
            chunks.close()
            assert client.current_requests == 0
        other.run(server.__aexit__())


def test_the_text_of_a_stream_is_that_of_the_chunks_given_out_however_much_has_been_read() -> None:
    words = [f"{number} " for number in range(10)]
    with SyncFace() as other:
        server = FaultServer([stream(*map(delta, words), end="stall"), stream(*map(delta, words), end="cut")])
        other.run(server.__aenter__())
        with VllmClient(base_url=server.url) as client:
            chunks = client.chat.completions.create(model="m", messages=[], stream=True)
            assert isinstance(chunks, SyncStream)
            assert chunks.text == ""
            given = [next(chunks), next(chunks)]
            while chunks._stream.text_of(10) != "".join(words):
                client.current_requests  # noqa: B018 - until all of it has been read
            assert chunks.text == "".join(one.choices[0].delta.content for one in given) == "0 1 "
            chunks.close()
            assert chunks.text == "0 1 "
            chunks = client.chat.completions.create(model="m", messages=[], stream=True)
            assert isinstance(chunks, SyncStream)
            with pytest.raises(StreamInterruptedError) as caught:
                given = list(chunks)
            assert caught.value.text == chunks.text == "".join(words)
        other.run(server.__aexit__())


def test_a_child_closes_what_a_thread_of_the_parent_is_using() -> None:
    face = SyncFace()
    face.run(double(1))
    with face._lock, warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        child = os.fork()
        if child == 0:
            signal.alarm(20)
            face.close()
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    face.close()


def test_a_child_makes_a_thread_of_its_own() -> None:
    with SyncFace() as face:
        face.run(double(1))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of forking with threads, which is what this is about
            child = os.fork()
        if child == 0:
            try:
                os._exit(0 if face.run(double(3)) == 6 and len(threads()) == 1 else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert face.run(double(2)) == 4


def test_a_pipeline_goes_on_in_a_child_of_a_busy_parent() -> None:
    server, client = FaultServer([healthy, stream(delta("a"), end="stall"), healthy]), pipeline("http://127.0.0.1:1")
    with SyncFace() as servers, SyncFace(client.close) as face:
        servers.run(server.__aenter__())
        client.endpoints[:] = [endpoint(server.url)]
        assert face.run(client.call(chat())).status == 200
        events = face.iterate(client.stream(chat(stream=True)))
        next(events)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            try:
                is_well = face.run(client.call(chat())).status == 200 and client.num_running == 0
                os._exit(0 if is_well else 1)
            finally:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert client.num_running == 1
        events.close()
        assert face.run(client.call(chat())).status == 200
        servers.run(server.__aexit__())


def test_a_program_that_forgets_to_close_ends_quietly() -> None:
    program = (
        "import asyncio, logging\nfrom vllm_mxext.client.sync_face import SyncFace\nface = SyncFace()\n"
        "logging.getLogger('asyncio').setLevel('ERROR')\n"  # in debug mode it warns of a machine that is slow
        "async def one():\n    yield 1\n    await asyncio.Event().wait()\n"
        "items = face.iterate(one())\nprint(next(items))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-X", "dev", "-c", program],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "1\n", "")


def test_a_thread_that_is_slow_is_not_brought_everything_at_once() -> None:
    given = []

    async def endless() -> AsyncGenerator[int, None]:
        for number in range(10_000):
            given.append(number)
            yield number

    with SyncFace() as face:
        items = face.iterate(endless())
        assert [next(items) for _ in range(100)] == list(range(100))
        face.run(double(1))
        assert len(given) <= 100 + 17
        items.close()


def test_what_was_brought_before_an_error_comes_before_it() -> None:
    async def failing() -> AsyncGenerator[int, None]:
        yield 1
        yield 2
        raise ValueError("broke")

    with SyncFace() as face:
        items = face.iterate(failing())
        assert [next(items), next(items)] == [1, 2]
        with pytest.raises(ValueError, match="broke"):
            next(items)


def test_in_a_forked_child_a_stream_of_the_parent_ends_with_an_error() -> None:
    with SyncFace() as face:
        items = face.iterate(numbers([]))
        assert next(items) == 0
        child = os.fork()
        if child == 0:
            try:
                next(items)
            except ClosedError:
                os._exit(0)
            os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert list(items) == [1, 2]
