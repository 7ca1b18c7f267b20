// Int8 linear layers: how weights and activations are laid out, and the dot product of four bytes.
//
// Both sides are quantised symmetrically in groups of 32 along K, each group with a scale of its own (the scheme of
// llama.cpp's q8_0): value = q * scale, q in -127 .. 127.
//
//   packed weight [ceil(N/32)][ceil(K/32)] blocks        one block: 32 columns x 32 k, 1088 bytes
//
//                  k 0-31   k 32-63                      | n0: k0 k1 k2 k3 | n1: k0 k1 k2 k3 | ... n31 |   128 bytes
//               +---------+---------+                    | n0: k4 k5 k6 k7 | n1: k4 ...               |
//   n 0-31      | block 0 | block 1 | ...                | ...                           (8 such lines)|
//   n 32-63     | block K/32 ...                         | scale n0 | scale n1 | ... n31   as bf16     |    64 bytes
//
// Weights are kept with 128 added, because the instruction that multiplies bytes wants one side unsigned. What that
// adds to a sum, 128 times the sum of the activations, is taken off by starting the sum at `Int8Group::start`.
// Columns past N and k past K have q = 0.
//
// Sums within a group are exact integers, and groups are added in ascending order as float32: a row's result does not
// depend on its neighbours, and is the same on every instruction set with a fused multiply-add.
#pragma once

#include <cstdint>

#include "products.h"

namespace mx {

constexpr int kInt8Group = 32;
constexpr int kInt8Columns = 32;
constexpr int kInt8Quads = kInt8Group / 4;
constexpr int64_t kInt8QuadBytes = kInt8Columns * 4;
constexpr int64_t kInt8ScaleOffset = kInt8Quads * kInt8QuadBytes;
constexpr int64_t kInt8BlockBytes = kInt8ScaleOffset + kInt8Columns * static_cast<int64_t>(sizeof(Bf16));
constexpr int kInt8Offset = 128;

/// Four neighbouring activations as they are.
inline void make_quad(const int8_t* q, uint32_t& quad) { std::memcpy(&quad, q, sizeof quad); }

#if defined(MX_HAS_BYTE_PRODUCTS)

/// Four neighbouring activations.
using Int8Quad = uint32_t;

/// Weights as the dot product reads them.
using Int8Weights = Words;
MX_INLINE Int8Weights prepare_weights(Words quads) { return quads; }

/// Adds, in every lane, the products of four weights and four activations.
MX_INLINE Ints add_products(Ints sum, const Int8Weights& w, const Int8Quad& x) {
    return add_byte_products(sum, w, Words{} + x);
}

#else

/// Four neighbouring activations as two pairs of 16-bit numbers, for the instruction that multiplies those.
struct Int8Quad {
    uint32_t even;  // k0 in the lower half, k2 in the upper
    uint32_t odd;   // k1, k3
};

inline void make_quad(const int8_t* q, Int8Quad& quad) {
    const auto pair = [](int8_t low, int8_t high) {
        return static_cast<uint16_t>(low) | static_cast<uint32_t>(static_cast<uint16_t>(high)) << 16;
    };
    quad = {pair(q[0], q[2]), pair(q[1], q[3])};
}

struct Int8Weights {
    Words even;
    Words odd;
};
MX_INLINE Int8Weights prepare_weights(Words quads) { return {quads & 0x00ff00ffu, (quads >> 8) & 0x00ff00ffu}; }

MX_INLINE Ints add_products(Ints sum, const Int8Weights& w, const Int8Quad& x) {
    // GCC would put all products before the sums, and then have far too few registers for them.
    sum = opaque(sum + multiply_pairs(w.even, Words{} + x.even));
    return opaque(sum + multiply_pairs(w.odd, Words{} + x.odd));
}

#endif

/// 32 quantised activations of one row, in quads as the product reads them.
template <class Quad>
struct QuantisedGroup {
    Quad quads[kInt8Quads];
    float scale;
    int32_t start;  // -their sum times what is added to the weights: 128 for int8; 1 for int4, where columns differ
};
using Int8Group = QuantisedGroup<Int8Quad>;

/// 32 neighbouring values of a row on their way to int8.
class GroupValues {
public:
    /// Reads the group at `x`, of which `left` values belong to the row; the others are 0.
    template <class T>
    GroupValues(const T* x, int64_t left) {
        for (int v = 0; v < kVectors; ++v, x += kLanes, left -= kLanes) {
            values_[v] = left >= kLanes ? load(x) : left > 0 ? load(x, SomeLanes{left}) : Floats{};
        }
    }

    /// The largest absolute value; NaN if one of them is.
    float magnitude() const {
        Floats largest{};
        for (const Floats& value : values_) largest = max_magnitude(largest, value);
        return horizontal_max_magnitude(largest);
    }

    /// Writes value / scale, rounded to the nearest whole number from -127 to 127; all 0 for a scale of 0.
    ///
    /// Returns the sum of what was written.
    int32_t quantise(float scale, int8_t* q) const {
        const Floats inverse = splat(scale > 0 ? 1.0f / scale : 0.0f);
        Ints total{};
        for (int v = 0; v < kVectors; ++v) {
            const Floats scaled = max(min(values_[v] * inverse, splat(127.0f)), splat(-127.0f));
            const Ints rounded = round_to_ints(scaled);
            store_bytes(q + v * kLanes, rounded);
            total += rounded;
        }
        return horizontal_sum(total);
    }

private:
    static constexpr int kVectors = kInt8Group / kLanes;
    Floats values_[kVectors];
};

/// Quantises the `depth` values of a row; groups past its end become zero. `offset` is what is added to the weights.
template <class T, class Quad>
void quantise_row(const T* x, int64_t depth, int offset, int64_t group_count, QuantisedGroup<Quad>* groups) {
    for (int64_t group = 0; group < group_count; ++group, ++groups) {
        const GroupValues values(x + group * kInt8Group, depth - group * kInt8Group);
        groups->scale = values.magnitude() / 127.0f;
        int8_t q[kInt8Group];
        groups->start = -offset * values.quantise(groups->scale, q);
        for (int quad = 0; quad < kInt8Quads; ++quad) make_quad(q + 4 * quad, groups->quads[quad]);
    }
}

}  // namespace mx
