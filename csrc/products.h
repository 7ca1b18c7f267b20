// Instructions that add several products of narrow numbers at once; where a CPU has them, MX_HAS_..._PRODUCTS says so.
#pragma once

#include "simd.h"

namespace mx {

#if defined(__AVX512VNNI__)
#define MX_HAS_BYTE_PRODUCTS 1
/// Adds, in every lane, the products of four unsigned bytes and four signed ones.
MX_INLINE Ints add_byte_products(Ints sum, Words unsigned_bytes, Words signed_bytes) {
    return (Ints)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)unsigned_bytes, (__m512i)signed_bytes);
}
#elif defined(__ARM_FEATURE_MATMUL_INT8)
#define MX_HAS_BYTE_PRODUCTS 1
MX_INLINE Ints add_byte_products(Ints sum, Words unsigned_bytes, Words signed_bytes) {
    return (Ints)vusdotq_s32((int32x4_t)sum, (uint8x16_t)unsigned_bytes, (int8x16_t)signed_bytes);
}
#endif

#if defined(__AVX512BF16__)
#define MX_HAS_BF16_PRODUCTS 1
/// Adds, in every lane, the products of two pairs of bf16 numbers.
MX_INLINE Floats add_bf16_products(Floats sum, Words a, Words b) {
    return (Floats)_mm512_dpbf16_ps((__m512)sum, (__m512bh)a, (__m512bh)b);
}
#elif defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#define MX_HAS_BF16_PRODUCTS 1
MX_INLINE Floats add_bf16_products(Floats sum, Words a, Words b) {
    return (Floats)vbfdotq_f32((float32x4_t)sum, (bfloat16x8_t)a, (bfloat16x8_t)b);
}
#endif

}  // namespace mx
