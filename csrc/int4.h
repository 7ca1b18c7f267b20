// Int4 linear layers: how the weights are laid out. Activations are those of int8.h: int8 in groups of 32.
//
// weight = (q - zero) * scale, q and zero in 0 .. 15, with a scale and a zero per column and G inputs (32, 64 or 128).
//
//   packed weight [ceil(N/64)][ceil(K/G)] blocks          one block: 64 columns x G inputs
//
//                  k 0 .. G-1  k G .. 2G-1                | n0: w w w w | n1: w w w w | ... n63 |   256 bytes, k 0-7
//               +------------+------------+               | n0: w w w w | ...                   |   k 8-15
//   n 0-63      |  block 0   |  block 1   | ...           | ...                     (G / 8 rows)|
//   n 64-127    |  block K/G ...                          | scale n0 | scale n1 | ... n63       |   128 bytes, fp16
//                                                         | zero n0  | zero n1  | ... n63       |   64 bytes
//
// Byte j of a column's four holds k = j in its lower and k = 4 + j in its upper half: an AND, and a shift and an AND,
// give two vectors of unsigned bytes as the dot product reads them. With G = 128 a weight takes 0.523 bytes.
//
// What the zeros add to a sum, zero times the sum of the activations, is taken off by starting the sum there. Scales
// are fp16, which is exact for fp16 ones and for bf16 ones from 2^-17 up. Columns past N have scale 0, inputs past K
// activation 0.
#pragma once

#include <cstdint>

#include "elements.h"
#include "int8.h"

namespace mx {

constexpr int kInt4Columns = 64;
constexpr int kInt4RowDepth = 8;
constexpr int64_t kInt4RowBytes = kInt4Columns * 4;
constexpr uint32_t kNibbles = 0x0f0f0f0fu;

/// Bytes of a block whose weights share scales by `group_size`.
constexpr int64_t int4_scale_offset(int group_size) { return group_size / kInt4RowDepth * kInt4RowBytes; }
constexpr int64_t int4_zero_offset(int group_size) {
    return int4_scale_offset(group_size) + kInt4Columns * static_cast<int64_t>(sizeof(Fp16));
}
constexpr int64_t int4_block_bytes(int group_size) { return int4_zero_offset(group_size) + kInt4Columns; }

#if defined(__AVX2__) && !defined(MX_HAS_BYTE_PRODUCTS)

/// Products of unsigned and signed bytes are added in pairs of 16 bits. A column's two sums take 16 products each from
/// a group, of at most 15 * 127: they fit.
using Int4Group = QuantisedGroup<uint32_t>;
using Int4Weights = Words;
using Int4Sum = Words;
MX_INLINE Int4Weights prepare_nibbles(Words bytes) { return bytes; }
MX_INLINE Int4Sum start_sum(Words, int32_t) { return Words{}; }
MX_INLINE Int4Sum add_nibbles(Int4Sum sum, Int4Weights w, uint32_t x) {
#if defined(__AVX512BW__)
    return (Words)_mm512_add_epi16((__m512i)sum, _mm512_maddubs_epi16((__m512i)w, (__m512i)(Words{} + x)));
#else
    return (Words)_mm256_add_epi16((__m256i)sum, _mm256_maddubs_epi16((__m256i)w, (__m256i)(Words{} + x)));
#endif
}
MX_INLINE Ints finish_sum(Int4Sum sum, Words zero, int32_t start) {
    return multiply_pairs(sum, Words{} + 0x00010001u) + multiply_pairs(zero, Words{} + static_cast<uint32_t>(start));
}

#else

using Int4Group = Int8Group;
using Int4Weights = Int8Weights;
using Int4Sum = Ints;
MX_INLINE Int4Weights prepare_nibbles(Words bytes) { return prepare_weights(bytes); }
MX_INLINE Int4Sum start_sum(Words zero, int32_t start) {
    // 16-bit products: the upper half of `zero` is 0, and the sum of 32 activations fits the lower half.
    return multiply_pairs(zero, Words{} + static_cast<uint32_t>(start));
}
MX_INLINE Int4Sum add_nibbles(Int4Sum sum, const Int4Weights& w, const Int8Quad& x) { return add_products(sum, w, x); }
MX_INLINE Ints finish_sum(Int4Sum sum, Words, int32_t) { return sum; }

#endif

}  // namespace mx
