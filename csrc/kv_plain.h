// KV groups in the type of the activations: 16 tokens, 16 * D elements each of keys and values.
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

#include <cstring>

#include "kv_layout.h"
#include "panels.h"

namespace mx {

template <class T>
struct PlainKv {
    static int64_t key_bytes(int head_dim) { return int64_t{kGroupTokens} * head_dim * sizeof(T); }
    static int64_t value_bytes(int head_dim) { return key_bytes(head_dim); }

    static void write_key(const T* key, int head_dim, int token, char* group) {
        T* to = reinterpret_cast<T*>(group) + token * kDepth;
        for (int d = 0; d < head_dim; d += kDepth) std::memcpy(to + d * kGroupTokens, key + d, sizeof(T) * kDepth);
    }

    static void write_value(const T* value, int head_dim, int token, char* group) {
        T* to = reinterpret_cast<T*>(group) + (token / kDepth) * head_dim * kDepth + token % kDepth;
        for (int d = 0; d < head_dim; ++d) to[d * kDepth] = value[d];
    }

private:
    static constexpr int kDepth = kPackDepth<T>;
};

}  // namespace mx
