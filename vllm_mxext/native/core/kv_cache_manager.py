"""`KVCacheManager`: gives requests KV blocks and finds the prefixes they share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from vllm_mxext.native.core.block_hash import extend_hashes, hash_root
from vllm_mxext.native.core.block_pool import BlockPool
from vllm_mxext.native.core.request import Request


class KVCacheManager:
    """Block tables of the running requests, and the prefix cache over them.

    With prefix caching on, requests of the same adapter (id and generation), scale of it and cache salt share blocks;
    with it off, only requests of the same `group_id` do. A block is only ever written by the one request it was
    allocated to, and only before it is full; a request that fills a block whose hash is known keeps its own copy,
    unregistered.

    Args:
        num_blocks: blocks of the KV tensor, the null block included.
        block_size: token positions per block.
        enable_prefix_caching: share blocks between unrelated requests.
    """

    def __init__(self, *, num_blocks: int, block_size: int, enable_prefix_caching: bool) -> None:
        self.block_size = block_size
        self.enable_prefix_caching = enable_prefix_caching
        self.pool = BlockPool(num_blocks)
        self._epoch = 0
        self._num_queries = 0
        self._num_hits = 0

    @property
    def num_usable_blocks(self) -> int:
        """Blocks that requests can hold."""
        return self.pool.num_usable_blocks

    @property
    def num_free_blocks(self) -> int:
        """Blocks nobody holds, cached ones included."""
        return self.pool.num_free_blocks

    def num_blocks_for(self, num_tokens: int) -> int:
        """Returns how many blocks hold so many tokens."""
        return -(-num_tokens // self.block_size)

    def find_prefix(self, request: Request) -> list[int]:
        """Returns the cached blocks a request without blocks can start from, at most `num_tokens - 1` tokens.

        None for a request that wants its prompt computed, whatever is cached.

        The blocks are not held yet: pass them to `allocate()` before anything else changes the cache.
        """
        root = self._prepare_hashes(request)
        if root is None or not request.reads_prefix_cache:
            return []
        hashes = request.block_hashes
        block_ids: list[int] = []
        for index in range((request.num_tokens - 1) // self.block_size):
            if index == len(hashes):
                extend_hashes(hashes, root, request.token_ids, self.block_size, index + 1)
            block_id = self.pool.find(hashes[index])
            if block_id is None:
                break
            block_ids.append(block_id)
        return block_ids

    def num_blocks_taken(self, num_tokens: int, prefix_block_ids: Sequence[int]) -> int:
        """Returns by how many free blocks the pool shrinks when `num_tokens` are held starting with this prefix."""
        num_new = self.num_blocks_for(num_tokens) - len(prefix_block_ids)
        return num_new + self.pool.num_free_among(prefix_block_ids)

    def allocate(self, request: Request, num_new_tokens: int, prefix_block_ids: Sequence[int] = ()) -> list[int] | None:
        """Appends the blocks that `num_new_tokens` more tokens need to a request's block table.

        Args:
            request: with `prefix_block_ids`, one without blocks; its `num_computed_tokens` becomes the prefix's length.
            num_new_tokens: tokens to compute after `num_computed_tokens`, or after the prefix.
            prefix_block_ids: what `find_prefix()` returned.

        Returns:
            The new blocks without the prefix, or None, with nothing changed, when too few are free.
        """
        if prefix_block_ids:
            return self._allocate_after_prefix(request, num_new_tokens, prefix_block_ids)
        num_new = -(-(request.num_computed_tokens + num_new_tokens) // self.block_size) - len(request.block_ids)
        if num_new <= 0:
            return []
        if num_new > self.pool.num_free_blocks:
            return None
        block_ids = self.pool.allocate(num_new)
        request.block_ids += block_ids
        return block_ids

    def trim(self, request: Request) -> None:
        """Takes back the blocks behind those that the request's tokens need."""
        num_needed = self.num_blocks_for(request.num_tokens)
        if len(request.block_ids) > num_needed:
            self.pool.release(request.block_ids[num_needed:])
            del request.block_ids[num_needed:]

    def register_full_blocks(self, request: Request, num_tokens: int) -> None:
        """Makes the blocks that the leading `num_tokens` tokens fill findable, once `find_prefix()` was asked.

        May be told of tokens that the coming forward pass computes: it writes the keys and values of the whole batch
        before any of them is read, so another request of the same step can already start from them. Whoever does that
        must run the pass without releasing the request first, or call `reset_prefix_cache()` if the pass fails.
        """
        num_full = num_tokens // self.block_size
        first = request.num_registered_blocks
        if num_full <= first:
            return
        root = request.hash_root
        request.num_registered_blocks = num_full
        if root is None or request.cache_epoch != self._epoch:
            return
        extend_hashes(request.block_hashes, root, request.token_ids, self.block_size, num_full)
        for index in range(first, num_full):
            self.pool.register(request.block_ids[index], request.block_hashes[index])

    def free(self, request: Request) -> None:
        """Takes all blocks from a request; full ones stay findable until they are allocated again."""
        self.pool.release(request.block_ids)
        request.block_ids = []
        request.num_computed_tokens = 0
        request.num_registered_blocks = 0

    def reset_prefix_cache(self) -> None:
        """Makes every block unfindable; running requests keep theirs, which are never shared from now on."""
        self.pool.forget_all()
        self._epoch += 1

    def count_prefix_query(self, num_tokens: int, num_hit_tokens: int) -> None:
        """Counts one lookup of `num_tokens` prompt tokens."""
        if self.enable_prefix_caching:
            self._num_queries += num_tokens
            self._num_hits += num_hit_tokens

    def take_prefix_counts(self) -> tuple[int, int]:
        """Returns the prompt tokens looked up and found since the last call."""
        counts = self._num_queries, self._num_hits
        self._num_queries = self._num_hits = 0
        return counts

    def check_integrity(self, requests: Iterable[Request] = ()) -> None:
        """Checks the pool against all requests that hold blocks.

        Raises:
            AssertionError: they contradict each other.
        """
        self.pool.check_integrity([request.block_ids for request in requests])

    def _allocate_after_prefix(
        self, request: Request, num_new_tokens: int, prefix_block_ids: Sequence[int]
    ) -> list[int] | None:
        assert not request.block_ids, "Only a request without blocks can start from a prefix."
        num_prefix_tokens = len(prefix_block_ids) * self.block_size
        num_tokens = num_prefix_tokens + num_new_tokens
        if self.num_blocks_taken(num_tokens, prefix_block_ids) > self.pool.num_free_blocks:
            return None
        self.pool.acquire(prefix_block_ids)
        block_ids = self.pool.allocate(self.num_blocks_for(num_tokens) - len(prefix_block_ids))
        request.block_ids = [*prefix_block_ids, *block_ids]
        request.num_computed_tokens = num_prefix_tokens
        request.num_registered_blocks = len(prefix_block_ids)
        return block_ids

    def _prepare_hashes(self, request: Request) -> bytes | None:
        """Starts the request's hashes over if they belong to an earlier epoch; returns their root."""
        if request.cache_epoch != self._epoch:
            request.cache_epoch = self._epoch
            request.block_hashes = []
            request.hash_root = self._root_of(request)
        return request.hash_root

    def _root_of(self, request: Request) -> bytes | None:
        source = request.source
        group_id = None if self.enable_prefix_caching else source.group_id
        if not self.enable_prefix_caching and group_id is None:
            return None
        return hash_root(
            adapter=request.adapter,
            adapter_scale=source.adapter_scale if request.adapter else 1.0,
            cache_salt=source.cache_salt,
            group_id=group_id,
        )
