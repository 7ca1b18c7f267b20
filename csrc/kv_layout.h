// Layout of the paged KV cache of one layer.
//
//   key, value: [num_blocks][num_kv_heads][block_size / 16] groups of 16 tokens; a group is 16 * head_dim elements:
//
//   key group [D / depth][16][depth]                    value group [16 / depth][D][depth]
//
//        token 0     token 1   ...  token 15                 dim 0       dim 1    ...  dim D-1
//      +-----------+-----------+---+-----------+           +-----------+-----------+---+------
//      | d0 d1     | d0 d1     |   | d0 d1     |           | t0 t1     | t0 t1     |   | t0 t1    one step
//      | d2 d3     | d2 d3     |   | d2 d3     |           | t2 t3     | t2 t3     |   | t2 t3    next step
//      +-----------+-----------+---+-----------+           +-----------+-----------+---+------
//
// The depth is 2 for bf16 and 1 otherwise, as for packed weights. Keys lie dimension by dimension so that q * k, and
// values token by token so that p * v, are the same tile product as the GEMM (tile.h): no sums across lanes.
#pragma once

#include <cstdint>

#include "kernels.h"
#include "panels.h"

namespace mx {

constexpr int kGroupTokens = 16;

/// First element of the group that holds `position` (a position inside block `block`).
inline int64_t group_offset(const MxGeometry& geometry, int64_t block, int64_t head, int64_t position_in_block) {
    const int64_t groups_per_block = geometry.block_size / kGroupTokens;
    const int64_t group = (block * geometry.num_kv_heads + head) * groups_per_block + position_in_block / kGroupTokens;
    return group * kGroupTokens * geometry.head_dim;
}

}  // namespace mx
