"""What a block hash depends on."""

from __future__ import annotations

import itertools

from vllm_mxext.native.core.block_hash import extend_hashes, hash_block, hash_root


def test_a_hash_depends_on_every_token_and_on_all_before():
    root = hash_root()
    first = hash_block(root, [1, 2])
    assert first == hash_block(root, [1, 2])
    assert len({first, hash_block(root, [2, 1]), hash_block(root, [1, 3]), hash_block(first, [1, 2])}) == 4


def test_requests_that_differ_in_any_extra_key_have_different_roots():
    roots = [
        hash_root(adapter=adapter, adapter_scale=scale, cache_salt=salt, group_id=group_id)
        for adapter, scale, salt, group_id in itertools.product(
            (None, (1, 1), (1, 2), (2, 1)), (1.0, 0.5), (None, "", "a"), (None, "", "a")
        )
    ]
    assert len(set(roots)) == len(roots)


def test_token_ids_beyond_32_bits_do_not_collide():
    root = hash_root()
    assert hash_block(root, [1]) != hash_block(root, [1 + 2**32])


def test_hashes_are_extended_one_full_block_at_a_time():
    root, token_ids = hash_root(), list(range(10))
    all_at_once: list[bytes] = []
    extend_hashes(all_at_once, root, token_ids, 3, 3)
    step_by_step: list[bytes] = []
    for num_blocks in (1, 1, 3):
        extend_hashes(step_by_step, root, token_ids, 3, num_blocks)
    assert step_by_step == all_at_once
    assert all_at_once[1] == hash_block(hash_block(root, [0, 1, 2]), [3, 4, 5])
    assert len(all_at_once) == 3
