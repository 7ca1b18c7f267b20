// KV groups in int8: 16 tokens of keys, or of values, with their scales behind them.
//
//   key group                                           value group
//
//        token 0     token 1   ...  token 15                 dim 0        dim 1    ...  dim D-1
//      +-----------+-----------+---+-----------+           +------------+------------+---+------------+
//      | d0 .. d3  | d0 .. d3  |   | d0 .. d3  |           | t0 .. t3   | t0 .. t3   |   | t0 .. t3   |
//      | d4 .. d7  | d4 .. d7  |   | d4 .. d7  |           | t4 .. t7   | ...                         |
//      | ...                       (D/4 lines) |           | t8 .. t11  |                             |
//      +-----------+-----------+---+-----------+           | t12 .. t15 |                             |
//      | scales of d0 .. d31, one per token    |           +------------+-----------------------------+
//      | scales of d32 .. d63            bf16  |           | scale of each token           float32    |
//      | ...            padded to whole lines  |           +------------------------------------------+
//      +---------------------------------------+
//
// Symmetric: value = q * scale, q in -127 .. 127. A key has a scale for every 32 of its dimensions, so that a score is
// a sum of int8 groups as in a linear layer (int8.h); a value has one scale, which the softmax's weight of its token is
// multiplied with before both are multiplied as bytes. Keys are kept with 128 added: of the two operands of the byte
// product one is unsigned, the key here and the weight there.
#pragma once

#include <algorithm>

#include "int8.h"
#include "kv_layout.h"
#include "parallel.h"

namespace mx {

struct Int8Kv {
    static constexpr int kQuadBytes = kGroupTokens * 4;
    static constexpr int64_t kKeyScaleBytes = kGroupTokens * sizeof(Bf16);
    static constexpr int64_t kValueScaleBytes = kGroupTokens * sizeof(float);
    static constexpr int64_t kLine = 64;

    /// Where the scales start in a group of keys or values.
    static int64_t scale_offset(int head_dim) { return int64_t{kGroupTokens} * head_dim; }

    static int64_t key_bytes(int head_dim) {
        const int64_t scales = divide_up(head_dim, kInt8Group) * kKeyScaleBytes;
        return scale_offset(head_dim) + divide_up(scales, kLine) * kLine;
    }
    static int64_t value_bytes(int head_dim) { return scale_offset(head_dim) + kValueScaleBytes; }

    template <class T>
    static void write_key(const T* key, int head_dim, int token, char* group) {
        char* scales = group + scale_offset(head_dim) + token * sizeof(Bf16);
        char* quads = group + token * 4;
        for (int first = 0; first < head_dim; first += kInt8Group) {
            const GroupValues values(key + first, head_dim - first);
            const Bf16 scale = float_to_bf16(values.magnitude() / 127.0f);
            std::memcpy(scales + first / kInt8Group * kKeyScaleBytes, &scale, sizeof scale);
            int8_t q[kInt8Group];
            values.quantise(bf16_to_float(scale), q);
            const int count = std::min(kInt8Group, head_dim - first);
            for (int d = 0; d < count; d += 4) {
                uint32_t quad;
                std::memcpy(&quad, q + d, sizeof quad);
                quad ^= 0x80808080u;  // adds 128 to each byte
                std::memcpy(quads + (first + d) * kGroupTokens, &quad, sizeof quad);
            }
        }
    }

    template <class T>
    static void write_value(const T* value, int head_dim, int token, char* group) {
        uint32_t largest = 0;  // bits order magnitudes as numbers do, and NaN above all
        for (int first = 0; first < head_dim; first += kInt8Group) {
            largest = std::max(largest, float_bits(GroupValues(value + first, head_dim - first).magnitude()));
        }
        const float scale = bits_float(largest) / 127.0f;
        std::memcpy(group + scale_offset(head_dim) + token * sizeof scale, &scale, sizeof scale);
        char* to = group + (token / 4) * head_dim * 4 + token % 4;
        for (int first = 0; first < head_dim; first += kInt8Group) {
            int8_t q[kInt8Group];
            GroupValues(value + first, head_dim - first).quantise(scale, q);
            const int count = std::min(kInt8Group, head_dim - first);
            for (int d = 0; d < count; ++d) to[(first + d) * 4] = static_cast<char>(q[d]);
        }
    }
};

}  // namespace mx
