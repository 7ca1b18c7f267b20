"""Chained hashes of full KV blocks, by which equal prefixes are found."""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence

import msgspec

from vllm_mxext.native.protocol import AdapterKey

_SEED = b"vllm_mxext kv block 1"
_TOKEN_TYPE = "q"  # 64 bits, so that no token id can be cut short


def hash_root(
    *,
    adapter: AdapterKey | None = None,
    adapter_scale: float = 1.0,
    cache_salt: str | None = None,
    group_id: str | None = None,
) -> bytes:
    """Returns the parent of a request's first block.

    Every hash of the chain depends on it, so requests that differ in any of these keys never share a block.
    """
    keys = msgspec.msgpack.encode((adapter, adapter_scale, cache_salt, group_id))
    return hashlib.sha256(_SEED + keys).digest()


def hash_block(parent: bytes, token_ids: Sequence[int]) -> bytes:
    """Returns the hash of one full block.

    Args:
        parent: hash of the block before it, or the request's root.
        token_ids: its `block_size` tokens.
    """
    return hashlib.sha256(parent + array(_TOKEN_TYPE, token_ids).tobytes()).digest()


def extend_hashes(hashes: list[bytes], root: bytes, token_ids: Sequence[int], block_size: int, num_blocks: int) -> None:
    """Appends to `hashes` until it covers the leading `num_blocks` full blocks of `token_ids`."""
    parent = hashes[-1] if hashes else root
    for index in range(len(hashes), num_blocks):
        parent = hash_block(parent, token_ids[index * block_size : (index + 1) * block_size])
        hashes.append(parent)
