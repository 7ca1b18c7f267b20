"""`Job`: one file on its way: which chunks are missing, who fetches which, and whether all answers are of one file."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Callable

from vllm_mxext.errors import ChecksumError, DownloadError, TransferError
from vllm_mxext.hub.sources.interface import Range
from vllm_mxext.hub.transfer.chunk_map import ChunkMap
from vllm_mxext.hub.transfer.claims import Claim
from vllm_mxext.hub.transfer.lease import AgainError, Lease, SupersededError
from vllm_mxext.hub.transfer.order import Order
from vllm_mxext.hub.transfer.partial_file import Origin, PartialFile
from vllm_mxext.hub.transfer.whole_digest import WholeDigest

_MAX_RESTARTS = 3


class Job:
    """One file, used from several threads.

    Chunks are given out from the first on, so that the digest of the whole follows closely behind, out of the page
    cache. Answers prove that they are of one file by a strong validator; where the digest of the whole is known, that
    decides at the end. With neither, the file comes in one stream and from its beginning each time.

    Args:
        order: which file, and where from.
        partial: where it arrives.
        claim: the right to that.
        range_chunks: at most asked for at once.
    """

    def __init__(self, order: Order, partial: PartialFile, claim: Claim, range_chunks: int) -> None:
        self.order = order
        self.file, self.source = order.file, order.source
        self.partial = partial
        self.claim = claim
        self.lock = threading.RLock()
        self.validator: str | None = None
        self.num_bytes = 0
        """Of finished chunks and of what is there of others."""
        self._range_chunks = range_chunks
        self._chunk_bytes = partial.chunk_bytes
        self._generation = 0
        self._num_restarts = 0
        self._was_wrong = self._is_refused = False
        self._is_open = False
        self._is_stream = False
        self._leases: list[Lease] = []
        self._chunks = ChunkMap(self.file.size, self._chunk_bytes)
        self._whole = self._new_whole()

    @property
    def size(self) -> int | None:
        """Bytes; None if they are not known yet."""
        return self._chunks.size

    @property
    def num_leases(self) -> int:
        """Connections at work on it."""
        return len(self._leases)

    @property
    def is_known(self) -> bool:
        """Its digest is known before it is there."""
        return self.file.sha256 is not None

    def resume(self, watch: Callable[[], None]) -> None:
        """Goes on with what is there of an earlier attempt, if that proves to be of the same file; reserves the space.

        Raises:
            StoreError: the folder cannot be used, or there is no space.
        """
        if self._is_usable(self.partial.origin()):
            self.partial.recall(self._chunks.size or 0, watch)
            for index in self.partial.hashes:
                self._chunks.finish(index)
                self.num_bytes += self._chunks.length(index)
        self._is_open = bool(self.partial.hashes)
        if self._is_open:
            self.partial.reserve(self.size or 0)
        else:
            self._begin(None)

    def next_lease(self) -> Lease | None:
        """Gives out the next missing chunks; None if there are none, or the first answer has to be waited for."""
        with self.lock:
            if self._is_refused or (self._leases and (not self._is_open or self._is_stream)):
                return None
            run = self._chunks.missing_run(len(self._chunks) if self._is_stream else self._range_chunks)
            if run is None and self.size is not None:
                return None
            first, end = run or (0, None)
            if self._is_stream and self.size is not None:
                end = len(self._chunks)
            taken = set() if end is None else self._chunks.take(first, end)
            lease = Lease(self._generation, first * self._chunk_bytes, end, self.partial.data, taken)
            self._leases.append(lease)
            return lease

    def ask(self, lease: Lease) -> tuple[int, int | None, str | None]:
        """Returns what to ask for: offsets of the first byte and behind the last one, and the validator.

        Raises:
            SupersededError: there is nothing left to do for this lease.
        """
        with self.lock:
            self._check(lease)
            if lease.position and not self.is_known and self.validator is None:
                self._begin(None)
                self._adopt(lease, is_whole=True)
            end = None if lease.end is None or self.size is None else min(lease.end * self._chunk_bytes, self.size)
            return lease.position, None if end == self.size else end, self.validator if lease.position else None

    def accept(self, lease: Lease, answer: Range) -> None:
        """Decides whether an answer can be used, and for which chunks.

        Raises:
            SupersededError: it cannot, and there is nothing left to do for this lease.
            AgainError: it cannot; another one has to be asked for.
            TransferError: it cannot; asking again may help.
            DownloadError: the file changes all the time.
        """
        with self.lock:
            self._check(lease)
            if self.file.size is not None and answer.total_size not in (None, self.file.size):
                raise TransferError(
                    f"{self.source.uri} answered with {answer.total_size} bytes for {self.file.path}, which has "
                    f"{self.file.size}; if this goes on, look whether a proxy or login page answers instead."
                )
            if not self._is_open:
                self._open(answer)
            elif not self._is_same(answer):
                self._changed(lease, answer)
            lease.is_from_start, lease.answered = answer.start == 0, set()
            if answer.start == lease.position:
                if lease.position and self._is_stream and self.size is not None:
                    self._is_stream = False  # it can do ranges: something else had answered before
                    self._trim(lease)
                return
            if answer.start != 0:
                raise TransferError(f"{self.source.uri} answered with other bytes of {self.file.path} than asked for.")
            self._pass_through(lease)

    def feed(self, lease: Lease, piece: bytes) -> bool:
        """Writes the next bytes of an answer; returns whether the lease has all it wants.

        Raises:
            SupersededError: they are not wanted any more.
            StoreError: they cannot be written.
        """
        view = memoryview(piece)
        while view:
            index, inside = divmod(lease.position, self._chunk_bytes)
            if inside == 0 and not self._enter(lease, index):
                return True
            if lease.generation != self._generation:
                raise SupersededError
            length = self._chunks.length(index)
            part, view = view[: length - inside], view[length - inside :]
            if index in lease.chunks:
                self.partial.write(lease.data, lease.position, part)
                lease.digest.update(part)
            self._move(lease, index, len(part))
        return self._is_over(lease)

    def end_answer(self, lease: Lease, *, total_size: int | None) -> bool:
        """An answer has ended without an error; returns whether the lease has all it wants.

        Raises:
            TransferError: the answer was too short.
        """
        with self.lock:
            if lease.generation != self._generation:
                raise SupersededError
            if self.size is None:
                self._chunks.set_size(lease.position)
                index, inside = divmod(lease.position, self._chunk_bytes)
                if inside and index in lease.chunks:
                    self._finish(lease, index)
                lease.end = len(self._chunks)
            if not lease.chunks:
                return True
            self.rewind(lease)
            if total_size is None:
                self._forget_answer(lease)
            raise TransferError(f"{self.source.uri} ended its answer for {self.file.path} too early.")

    def rewind(self, lease: Lease) -> None:
        """Forgets the bytes of the current chunk of a lease, which are not sure to be right."""
        with self.lock:
            if lease.generation == self._generation:
                inside = lease.position % self._chunk_bytes
                if lease.position // self._chunk_bytes in lease.chunks:
                    self.num_bytes -= inside
                lease.position -= inside
                lease.digest = hashlib.sha256()

    def give_back(self, lease: Lease) -> None:
        """Ends a lease; what it has not finished is given out again."""
        with self.lock:
            if lease in self._leases:
                self.rewind(lease)
                self._leases.remove(lease)
                self._chunks.give_back(lease.chunks)

    def abandon(self) -> None:
        """Makes all leases void."""
        with self.lock:
            self._generation += 1
            self._leases.clear()

    def follow(self, watch: Callable[[], None]) -> str | None:
        """Hashes the chunks that are there and in order; returns the digest of the whole once that is known and right.

        If it is not the one that was promised, everything is missing again.

        Args:
            watch: called between chunks; may raise.

        Raises:
            ChecksumError: it is not the one that was promised, for the second time.
            StoreError: the file cannot be read.
        """
        whole = self._whole
        digest = whole.follow(watch)
        with self.lock:
            if digest is None or whole is not self._whole:
                return None
            if not self.is_known or digest == self.file.sha256:
                return digest
            self._is_refused = self._was_wrong
            self._was_wrong = True
            self._begin(None)
        if self._is_refused:
            raise ChecksumError(
                f"{self.file.path} of {self.source.uri} has the SHA-256 {digest} and not {self.file.sha256}, after a "
                "second download too; use another source, or correct the digest if the file has changed."
            )
        return None

    # What follows is called with the lock held

    def _check(self, lease: Lease) -> None:
        if lease.generation != self._generation:
            raise SupersededError

    def _new_whole(self) -> WholeDigest:
        return WholeDigest(self.partial, self._chunks, self._chunk_bytes, self.lock)

    def _is_usable(self, origin: Origin | None) -> bool:
        """Whether what is there may be of this file; takes over what is known of it."""
        if origin is None or origin.size is None or self.file.size not in (None, origin.size):
            return False
        self._chunks = ChunkMap(origin.size, self._chunk_bytes)
        self._whole = self._new_whole()
        self.validator = origin.validator if origin.uri == self.source.uri else None
        return self.is_known or self.validator is not None

    def _begin(self, validator: str | None) -> None:
        """Forgets everything; leases of before are void."""
        self._generation += 1
        self._is_open = self._is_stream = False
        self.validator, self._chunks = validator, ChunkMap(self.file.size, self._chunk_bytes)
        self.num_bytes = 0
        self._leases.clear()
        self.partial.begin(self._origin())
        self._whole = self._new_whole()
        self.partial.reserve(self.size or 0)

    def _open(self, answer: Range) -> None:
        """Takes the first answer for the file; its space is reserved once its length is known."""
        lease = self._leases[0]
        self.validator, self._is_open = answer.validator, True
        if self.size is None and answer.total_size is not None:
            self._chunks.set_size(answer.total_size)
            self.partial.reserve(answer.total_size)
            self._take_rest(lease)
        self.partial.write_origin(self._origin())
        if self.size is None or not (self.is_known or self.validator):
            self._is_stream = True
            if self.size is not None and lease.end != len(self._chunks):
                # Only a part was asked for, and a second part would not be sure to be of the same file.
                self._take_rest(lease)
                raise AgainError

    def _is_same(self, answer: Range) -> bool:
        if answer.total_size not in (None, self.size):
            return False
        if not self.is_known:
            return answer.validator is not None and answer.validator == self.validator
        if self.validator not in (None, answer.validator):
            # Servers of one CDN may name the same bytes differently; the digest decides, and nobody is asked for proof.
            self.validator = None
            if answer.start == 0:
                raise AgainError
        return True

    def _changed(self, lease: Lease, answer: Range) -> None:
        had_any = self.num_bytes > 0
        self._num_restarts += had_any
        if self._num_restarts > _MAX_RESTARTS:
            raise DownloadError(
                f"{self.file.path} of {self.source.uri} changes while it is downloaded; name a fixed revision."
            )
        self._begin(None)
        if answer.start != 0:
            raise SupersededError
        self._adopt(lease, is_whole=answer.validator is None)
        self._open(answer)

    def _forget_answer(self, lease: Lease) -> None:
        """Undoes what an answer has brought: without an announced length it may have been something else altogether."""
        if not self.is_known:
            self._begin(self.validator)
            self._adopt(lease, is_whole=True)
            return
        for index in lease.answered:
            del self.partial.hashes[index]
            self.num_bytes -= self._chunks.length(index)
        self._chunks.give_back(lease.answered)
        lease.position = min([lease.position, *(index * self._chunk_bytes for index in lease.answered)])
        for index in lease.answered:
            lease.chunks |= self._chunks.take(index, index + 1)
        self._whole.restart()

    def _adopt(self, lease: Lease, *, is_whole: bool) -> None:
        """Makes a lease the first of a new generation."""
        lease.generation, lease.position, lease.data = self._generation, 0, self.partial.data
        lease.digest, lease.chunks = hashlib.sha256(), set()
        lease.end = None
        if self.size is not None:
            lease.end = len(self._chunks) if is_whole else min(len(self._chunks), self._range_chunks)
            lease.chunks |= self._chunks.take(0, lease.end)
        self._is_stream = is_whole
        self._leases.append(lease)

    def _pass_through(self, lease: Lease) -> None:
        """The server sends everything whatever is asked: one connection reads it and takes what is missing."""
        self._is_stream = True
        if any(other.is_from_start for other in self._leases if other is not lease):
            self.give_back(lease)  # that one reads on
            raise SupersededError
        self.rewind(lease)
        lease.position = 0
        self._take_rest(lease)

    def _trim(self, lease: Lease) -> None:
        lease.end = min(len(self._chunks), lease.position // self._chunk_bytes + self._range_chunks)
        extra = {index for index in lease.chunks if not lease.position // self._chunk_bytes <= index < lease.end}
        lease.chunks -= extra
        self._chunks.give_back(extra)

    def _take_rest(self, lease: Lease) -> None:
        lease.end = len(self._chunks)
        lease.chunks |= self._chunks.take(0, lease.end)

    def _enter(self, lease: Lease, index: int) -> bool:
        """Whether a lease goes on with this chunk; one whose server sends everything takes what it comes across."""
        with self.lock:
            self._check(lease)
            if lease.end is None:
                self._chunks.grow(index)
            elif index >= len(self._chunks) or (index >= lease.end and not self._reads_on(lease)):
                return False
            lease.chunks |= self._chunks.take(index, index + 1)
            lease.digest = hashlib.sha256()
            return True

    def _move(self, lease: Lease, index: int, num_bytes: int) -> None:
        with self.lock:
            self._check(lease)
            lease.position += num_bytes
            if index in lease.chunks:
                self.num_bytes += num_bytes
                lease.furthest = max(lease.furthest, lease.position)
                if lease.position in (self.size, (index + 1) * self._chunk_bytes):
                    self._finish(lease, index)

    def _finish(self, lease: Lease, index: int) -> None:
        self.partial.finish_chunk(index, lease.digest.hexdigest())
        self._chunks.finish(index)
        lease.chunks.discard(index)
        lease.num_finished += 1
        lease.answered.add(index)

    def _is_over(self, lease: Lease) -> bool:
        with self.lock:
            return self.size is not None and not lease.chunks and not self._reads_on(lease)

    def _reads_on(self, lease: Lease) -> bool:
        """Whether an answer may well go on behind what was asked for, and that is of use."""
        return self._is_stream and lease.is_from_start and self._chunks.has_missing

    def _origin(self) -> Origin:
        return Origin(self.source.uri, self.file.path, self.size, self.validator, self._chunk_bytes)
