// Where a token's keys and values lie in the paged KV cache of one layer.
//
//   key, value: [num_blocks][num_kv_heads][block_size / 16] groups of 16 tokens
//
// What a group looks like is the format's business: kv_plain.h (the type of the activations) and kv_int8.h. A format
// says how many bytes a group of keys and one of values take, and writes a token's row into them.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace mx {

constexpr int kGroupTokens = 16;

/// Which group holds `position` (a position inside block `block`).
inline int64_t group_index(const MxGeometry& geometry, int64_t block, int64_t head, int64_t position_in_block) {
    const int64_t groups_per_block = geometry.block_size / kGroupTokens;
    return (block * geometry.num_kv_heads + head) * groups_per_block + position_in_block / kGroupTokens;
}

}  // namespace mx
