"""`Crew`: threads that share the files of one download: who fetches what next, retries, and the end of it."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial

from vllm_mxext.config.hub import NetworkConfig
from vllm_mxext.config.memory_plan import format_bytes
from vllm_mxext.errors import DownloadError, HubCause, StoreError, TransferError
from vllm_mxext.hub.retrying import wait_s
from vllm_mxext.hub.store.blobs import BlobStore
from vllm_mxext.hub.store.failures import storing
from vllm_mxext.hub.transfer.claims import Claims
from vllm_mxext.hub.transfer.job import Job
from vllm_mxext.hub.transfer.lease import AgainError, Lease, SupersededError
from vllm_mxext.hub.transfer.meter import Meter
from vllm_mxext.hub.transfer.order import Order, Tuning
from vllm_mxext.hub.transfer.pace import Clock, TokenBucket
from vllm_mxext.hub.transfer.partial_file import LostError, PartialFile

_TICK_S = 0.1
_LEAVE_S = 2.0
"""How long threads that wait for a server are waited for when all is over; they are left behind then."""

_NUM_HASHERS = 4


class Crew:
    """The threads of one download.

    Args:
        orders: what is wanted.
        blobs: where it is kept.
        config: of the network.
        meter: told what arrives.
        clock: time.
        tuning: sizes and numbers.
    """

    def __init__(
        self,
        orders: tuple[Order, ...],
        blobs: BlobStore,
        config: NetworkConfig,
        meter: Meter,
        clock: Clock,
        tuning: Tuning,
    ) -> None:
        self._orders = orders
        self._blobs = blobs
        self._config = config
        self._meter = meter
        self._clock = clock
        self._tuning = tuning
        self._claims = Claims(blobs.folder)
        self._bucket = TokenBucket(config.bytes_per_s, clock)
        self._results: dict[str, tuple[int, str]] = {}
        self._pending: deque[Order] = deque()
        self._jobs: dict[str, Job] = {}
        self._num_opening = 0
        self._changed = threading.Condition(threading.RLock())
        self._halt = threading.Event()
        self._error: BaseException | None = None
        self._hashers: ThreadPoolExecutor | None = None

    def run(self, stop: threading.Event) -> dict[str, tuple[int, str]]:
        """Fetches everything; returns size and digest by key.

        Args:
            stop: ends it when set.

        Raises:
            DownloadError: a source does not give a file, or `stop` was set.
            ChecksumError: a file is not what was promised.
            StoreError: no space, no permission.
        """
        if self._blobs.read_only_roots:
            self._meter.detail = "looking for files that are there already"
            self._tell()
        with ThreadPoolExecutor(_NUM_HASHERS, "hub-find") as finders:  # other places hash what they have first
            there = list(finders.map(self._is_there, self._orders))
        self._pending += [order for order, is_there in zip(self._orders, there, strict=True) if not is_there]
        self._meter.detail = ""
        if self._pending:
            self._check_space()
            self._run_threads(stop)
        self._tell()
        return self._results

    def _run_threads(self, stop: threading.Event) -> None:
        self._hashers = ThreadPoolExecutor(min(_NUM_HASHERS, os.cpu_count() or 1), "hub-hash")
        threads = [
            threading.Thread(target=self._work, name=f"hub-fetch-{number}", daemon=True)
            for number in range(min(self._config.num_connections, self._num_ranges()))
        ]
        try:
            for thread in threads:
                thread.start()
            self._watch(stop)
        finally:
            self._end(threads)
        if self._error is not None:
            raise self._error

    def _watch(self, stop: threading.Event) -> None:
        while True:
            with self._changed:
                if self._error is not None or len(self._results) == len(self._orders):
                    return
                self._changed.wait(_TICK_S)
            if stop.is_set():
                raise DownloadError(
                    "The download was interrupted; what has arrived is kept, and the next attempt goes on with it.",
                    cause=HubCause.INTERRUPTED,
                )
            if self._meter.is_due:
                self._tell()

    def _end(self, threads: list[threading.Thread]) -> None:
        """Stops everybody; a thread that still waits for a server finds out later and touches nothing."""
        with self._changed:
            self._halt.set()
            self._changed.notify_all()
        deadline = self._clock.monotonic() + _LEAVE_S
        for thread in threads:
            if thread.ident is not None:
                thread.join(max(0.0, deadline - self._clock.monotonic()))
        if self._hashers is not None:
            self._hashers.shutdown(wait=True, cancel_futures=True)
        for job in self._jobs.values():
            if not any(thread.is_alive() for thread in threads):
                job.partial.close()
            job.claim.release(is_done=not job.num_bytes)

    # What is called in threads

    def _work(self) -> None:
        try:
            while (task := self._next_task()) is not None:
                task()
        except _HaltedError:
            pass
        except BaseException as error:  # it is raised in the thread that called
            self._fail(error)

    def _next_task(self) -> Callable[[], None] | None:
        with self._changed:
            while not self._halt.is_set() and len(self._results) < len(self._orders):
                order = self._next_order()
                for job in sorted(self._jobs.values(), key=lambda job: job.num_leases):
                    if job.num_leases and order is not None:
                        break  # a connection for each file before a second one for any
                    lease = job.next_lease()
                    if lease is not None:
                        return partial(self._fetch, job, lease)
                if order is not None:
                    self._pending.remove(order)
                    self._num_opening += 1
                    return partial(self._open, order)
                self._changed.wait(self._tuning.busy_s if self._pending else None)
        return None

    def _next_order(self) -> Order | None:
        if len(self._jobs) + self._num_opening >= self._config.num_connections:
            return None
        now = self._clock.monotonic()
        return next((order for order in self._pending if order.not_before_s <= now), None)

    def _open(self, order: Order) -> None:
        """Begins a file, or finds that it is there, or that another process is at it."""
        try:
            job = None if self._is_there(order) else self._make_job(order)
        finally:
            with self._changed:
                self._num_opening -= 1
                self._changed.notify_all()
        if job is not None:
            self._follow(job)

    def _make_job(self, order: Order) -> Job | None:
        claim = self._claims.take(order.key)
        if claim is None:
            self._meter.detail = f"another process downloads {order.file.path}"
            self._put_off(order)
            return None
        if self._is_there(order):
            claim.release(is_done=True)
            return None
        try:
            arriving = PartialFile(claim.folder, self._blobs.chunk_bytes)
            if order.seed is not None and arriving.origin() is None:
                self._meter.detail = f"copying what is good of {order.file.path}"
                arriving.seed(order.seed.path, order.seed.hashes, order.source.uri, order.file)
            job = Job(order, arriving, claim, self._tuning.range_chunks)
            job.resume(self._check_halt)
        except BaseException:
            claim.release(is_done=False)
            raise
        with self._changed:
            self._jobs[order.key] = job
        return job

    def _fetch(self, job: Job, lease: Lease) -> None:
        """Fetches chunks, asking again as long as something new arrives."""
        num_failures, furthest = 0, lease.furthest
        try:
            while not self._halt.is_set():
                error: TransferError | None = None
                try:
                    if self._ask(job, lease):
                        return
                except TransferError as failure:
                    error = failure
                except AgainError:
                    pass
                num_failures = 1 if lease.furthest > furthest else num_failures + 1
                furthest = lease.furthest
                if num_failures >= self._tuning.num_attempts:
                    raise _given_up(job, error, num_failures)
                if error is not None:
                    self._meter.detail = f"asking again for {job.file.path}: {error}"
                    self._clock.sleep(wait_s(num_failures, error.retry_after_s), self._halt)
        except SupersededError:
            pass
        except LostError:
            self._lose(job)
        finally:
            job.give_back(lease)
            self._wake()

    def _ask(self, job: Job, lease: Lease) -> bool:
        """Asks once; returns whether the lease has all it wants."""
        start, end, validator = job.ask(lease)
        with job.source.open_range(job.file, start, end, validator) as answer:
            job.accept(lease, answer)
            self._wake()  # the first answer lets other connections begin
            for piece in answer.chunks():
                self._bucket.take(len(piece), self._halt)
                self._check_halt()
                self._meter.received(len(piece))
                num_finished = lease.num_finished
                is_over = job.feed(lease, piece)
                if lease.num_finished > num_finished:
                    self._follow(job)
                if is_over:
                    return True
            is_over = job.end_answer(lease, total_size=answer.total_size)
            self._follow(job)
            return is_over

    def _follow(self, job: Job) -> None:
        if not self._halt.is_set() and self._hashers is not None:
            with suppress(RuntimeError):  # shut down meanwhile
                self._hashers.submit(self._hash, job)

    def _hash(self, job: Job) -> None:
        """Hashes what is there of the whole file; when that is all, the file becomes a blob."""
        try:
            digest, order = job.follow(self._check_halt), job.order
            if digest is None:
                self._wake()  # it may have turned out wrong, so that everything is missing again
                return
            hashes = tuple(job.partial.hashes[index] for index in range(len(job.partial.hashes)))
            self._blobs.adopt(job.partial.data_path, digest, hashes, replaces=order.seed is not None)
            job.claim.release(is_done=True)
            with self._changed:
                del self._jobs[order.key]
                self._results[order.key] = (job.size or 0, digest)
        except _HaltedError:
            pass
        except BaseException as error:  # it is raised in the thread that called
            self._fail(error)
        self._wake()

    def _lose(self, job: Job) -> None:
        """Another process has taken the file over: it is looked for again later."""
        with self._changed:
            if self._jobs.get(job.order.key) is job:
                del self._jobs[job.order.key]
                job.abandon()
                job.claim.release(is_done=False)
                self._put_off(job.order)

    def _put_off(self, order: Order) -> None:
        with self._changed:
            order.not_before_s = self._clock.monotonic() + self._tuning.busy_s
            self._pending.append(order)

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _check_halt(self) -> None:
        if self._halt.is_set():
            raise _HaltedError

    def _fail(self, error: BaseException) -> None:
        with self._changed:
            self._error = self._error or error
            self._halt.set()
            self._changed.notify_all()

    # What is asked about the whole

    def _is_there(self, order: Order) -> bool:
        """Whether the store has the file already; it is a result then."""
        if order.file.sha256 is None or order.seed is not None:
            return False
        with storing(self._blobs.folder):
            path = self._blobs.find(order.file.sha256)
            if path is None:
                return False
            size = path.stat().st_size
        with self._changed:
            self._results[order.key] = (size, order.file.sha256)
        return True

    def _check_space(self) -> None:
        """Refuses what cannot fit before anything is asked for.

        Raises:
            StoreError: so it is.
        """
        missing = sum(max(0, (order.file.size or 0) - self._claims.held_bytes(order.key)) for order in self._pending)
        folder = self._blobs.folder
        while not folder.exists() and folder != folder.parent:
            folder = folder.parent
        with storing(self._blobs.folder):
            status = os.statvfs(folder)
        free = status.f_bavail * status.f_frsize
        spare = min(self._tuning.spare_bytes, missing // 20)
        if missing and free < missing + spare:
            stays = f", of which {format_bytes(spare)} are to stay so" if spare else ""
            raise StoreError(
                f"{format_bytes(missing)} are still to be downloaded to '{self._blobs.folder}' and "
                f"{format_bytes(free)} are free there{stays}; free {format_bytes(missing + spare - free)}, for example "
                "with `mxext hub gc`, or name another folder with --download-dir.",
                cause=HubCause.NO_SPACE,
            )

    def _num_ranges(self) -> int:
        """At most so many connections are of use."""
        length = self._blobs.chunk_bytes * self._tuning.range_chunks
        sizes = [order.file.size for order in self._pending]
        return sum(self._config.num_connections if size is None else max(1, -(-size // length)) for size in sizes)

    def _tell(self) -> None:
        with self._changed:
            jobs = [job for key, job in self._jobs.items() if key not in self._results]
            done = sum(size for size, _ in self._results.values()) + sum(job.num_bytes for job in jobs)
            sizes = {order.key: order.file.size or 0 for order in self._orders}
            sizes |= {job.order.key: job.size or 0 for job in jobs}
            sizes |= {key: size for key, (size, _) in self._results.items()}
            num_done = sum(order.num_paths for order in self._orders if order.key in self._results)
        self._meter.tell(done, sum(sizes.values()), num_done, sum(order.num_paths for order in self._orders))


def _given_up(job: Job, error: TransferError | None, num_failures: int) -> DownloadError:
    reason = str(error) if error else f"{job.source.uri} gives no consistent answers for {job.file.path}."
    text = f"{reason.rstrip('.')}; that was attempt {num_failures} without progress, and what has arrived is kept."
    return DownloadError(text, cause=error.cause if error else HubCause.FAILED)


class _HaltedError(Exception):
    """All is over: another thread has failed, or the download was stopped."""
