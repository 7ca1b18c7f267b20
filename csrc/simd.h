// One float vector as wide as the instruction set's registers, and the operations the kernels need on it.
//
// GCC vector extensions carry the arithmetic; intrinsics appear only where the extensions cannot name an instruction.
// Nothing here lets the compiler choose how to round: contraction is off (see CMakeLists.txt) and fma() is explicit, so
// that a value does not depend on how the code around it was unrolled.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "elements.h"

#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define MX_ALWAYS_INLINE __attribute__((always_inline))
#define MX_INLINE inline MX_ALWAYS_INLINE

namespace mx {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
constexpr int kVectorRegisters = 32;
#elif defined(__AVX2__)
constexpr int kLanes = 8;
constexpr int kVectorRegisters = 16;
#elif defined(__aarch64__)
constexpr int kLanes = 4;
constexpr int kVectorRegisters = 32;
#else
constexpr int kLanes = 4;
constexpr int kVectorRegisters = 16;
#endif

typedef float Floats __attribute__((vector_size(kLanes * 4)));
typedef uint32_t Words __attribute__((vector_size(kLanes * 4)));
typedef int32_t Ints __attribute__((vector_size(kLanes * 4)));
typedef uint16_t Shorts __attribute__((vector_size(kLanes * 2)));

// "- 0" broadcasts and folds away; "+ 0" would stay, because it changes -0.
MX_INLINE Floats splat(float value) { return value - Floats{}; }

MX_INLINE Words load_words(const void* from) {
    Words value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

MX_INLINE Shorts load_shorts(const void* from) {
    Shorts value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

// Conversions between 16 and 32 bits are spelled out where __builtin_convertvector compiles to twice the instructions.

MX_INLINE Words widen(Shorts value) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu16_epi32((__m256i)value);
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu16_epi32((__m128i)value);
#else
    return __builtin_convertvector(value, Words);
#endif
}

/// kLanes bytes, one per lane.
MX_INLINE Words load_bytes(const uint8_t* from) {
#if defined(__AVX512F__)
    return (Words)_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__AVX2__)
    return (Words)_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(from)));
#else
    typedef uint8_t Bytes __attribute__((vector_size(kLanes)));
    Bytes bytes;
    std::memcpy(&bytes, from, sizeof bytes);
    return __builtin_convertvector(bytes, Words);
#endif
}

/// Keeps the lower half of every lane, which must hold the whole value.
MX_INLINE Shorts narrow(Words value) {
#if defined(__AVX512F__)
    return (Shorts)_mm512_cvtepi32_epi16((__m512i)value);
#elif defined(__AVX2__)
    const __m256i packed = _mm256_packus_epi32((__m256i)value, (__m256i)value);  // within each half
    return (Shorts)_mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
#else
    return __builtin_convertvector(value, Shorts);
#endif
}

/// `a * b + c`; rounded once where the instruction set has a fused multiply-add.
MX_INLINE Floats fma(Floats a, Floats b, Floats c) {
#if defined(__AVX512F__)
    return (Floats)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
    return (Floats)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
    return (Floats)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
    return a * b + c;
#endif
}

/// In every lane, the sum of the products of the two signed 16-bit halves.
MX_INLINE Ints multiply_pairs(Words a, Words b) {
#if defined(__AVX512BW__)
    return (Ints)_mm512_madd_epi16((__m512i)a, (__m512i)b);
#elif defined(__AVX2__)
    return (Ints)_mm256_madd_epi16((__m256i)a, (__m256i)b);
#elif defined(__SSE2__)
    return (Ints)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
    const Ints low_a = (Ints)(a << 16) >> 16, low_b = (Ints)(b << 16) >> 16;
    return low_a * low_b + ((Ints)a >> 16) * ((Ints)b >> 16);
#endif
}

/// `value`, about which the compiler knows nothing: it can neither reorder nor merge what comes before with what follows.
template <class Vector>
MX_INLINE Vector opaque(Vector value) {
#if defined(__x86_64__)
    asm("" : "+v"(value));
#elif defined(__aarch64__)
    asm("" : "+w"(value));
#endif
    return value;
}

MX_INLINE Floats to_floats(Ints value) { return __builtin_convertvector(value, Floats); }

/// Rounds to the nearest whole number, halves to the even one; |value| < 2^22.
MX_INLINE Ints round_to_ints(Floats value) {
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it drops the fraction
    return __builtin_convertvector(value + round - round, Ints);
}

/// Stores the lowest byte of every lane.
MX_INLINE void store_bytes(int8_t* to, Ints value) {
    typedef int8_t Bytes __attribute__((vector_size(kLanes)));
    const Bytes bytes = __builtin_convertvector(value, Bytes);
    std::memcpy(to, &bytes, sizeof bytes);
}

/// The larger of `largest`, which is not negative, and |value|; a NaN counts as larger than every number.
MX_INLINE Floats max_magnitude(Floats largest, Floats value) {
    const Words magnitude = (Words)value & 0x7fffffffu;
    return (Floats)((Words)largest > magnitude ? (Words)largest : magnitude);
}

/// Lanewise maximum; a NaN in `a` gives `b`.
MX_INLINE Floats max(Floats a, Floats b) { return a > b ? a : b; }
MX_INLINE Floats min(Floats a, Floats b) { return a < b ? a : b; }

// ---- widening loads and rounding stores: kLanes elements, any alignment ----

MX_INLINE Floats load(const float* from) {
    Floats value;
    std::memcpy(&value, from, sizeof value);
    return value;
}

MX_INLINE Floats load(const Bf16* from) {
    return (Floats)(widen(load_shorts(from)) << 16);
}

MX_INLINE Floats load(const Fp16* from) {
#if defined(__AVX512F__)
    return (Floats)_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
#elif defined(__AVX2__)
    return (Floats)_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from)));
#elif defined(__aarch64__)
    return (Floats)vcvt_f32_f16((float16x4_t)load_shorts(from));
#else
    const Words half = widen(load_shorts(from));
    const Words magnitude = (half & 0x7fff) << 13;
    // 2^112 moves the exponent bias from 15 to 127 and normalises subnormals on the way.
    const Floats finite = (Floats)magnitude * 0x1p112f;
    const Words special = magnitude | 0x7f800000;
    const Words bits = magnitude >= 0x0f800000 ? special : (Words)finite;
    return (Floats)(bits | ((half & 0x8000) << 16));
#endif
}

MX_INLINE void store(float* to, Floats value) { std::memcpy(to, &value, sizeof value); }

/// Rounds to nearest even into the lower half of every lane; NaN becomes the quiet NaN.
MX_INLINE Words bf16_bits(Floats value) {
    const Words bits = (Words)value;
    const Words rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    return value == value ? rounded : Words{} + 0x7fc0;
}

MX_INLINE void store(Bf16* to, Floats value) {
#if defined(__AVX512BF16__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh((__m512)value));
#else
    const Shorts bits = narrow(bf16_bits(value));
    std::memcpy(to, &bits, sizeof bits);
#endif
}

MX_INLINE void store(Fp16* to, Floats value) {
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtps_ph((__m512)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), _mm256_cvtps_ph((__m256)value, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__aarch64__)
    const Shorts bits = (Shorts)vcvt_f16_f32((float32x4_t)value);
    std::memcpy(to, &bits, sizeof bits);
#else
    for (int lane = 0; lane < kLanes; ++lane) to[lane] = float_to_half(value[lane]);
#endif
}

/// Which lanes of a vector take part: all of them, or the first few at the end of a row.
struct AllLanes {};
struct SomeLanes {
    int64_t count;
};

template <class T>
MX_INLINE Floats load(const T* from, AllLanes) {
    return load(from);
}

/// The other lanes are zero, and nothing past the last lane that takes part is read.
template <class T>
inline Floats load(const T* from, SomeLanes lanes) {
    T elements[kLanes] = {};
    std::memcpy(elements, from, sizeof(T) * static_cast<size_t>(lanes.count));
    return load(elements);
}

template <class T>
MX_INLINE void store(T* to, Floats value, AllLanes) {
    store(to, value);
}

/// Nothing past the last lane that takes part is written.
template <class T>
inline void store(T* to, Floats value, SomeLanes lanes) {
    T elements[kLanes];
    store(elements, value);
    std::memcpy(to, elements, sizeof(T) * static_cast<size_t>(lanes.count));
}

/// Calls `body(first, lanes)` for every vector of `count` elements.
template <class Body>
MX_INLINE void for_each_vector(int64_t count, Body body) {
    int64_t first = 0;
    for (; first + kLanes <= count; first += kLanes) body(first, AllLanes{});
    if (first < count) body(first, SomeLanes{count - first});
}

/// What `value` becomes when it is stored as T and loaded again.
template <class T>
MX_INLINE Floats round_to(Floats value) {
    T elements[kLanes];
    store(elements, value);
    return load(elements);
}
template <>
MX_INLINE Floats round_to<float>(Floats value) {
    return value;
}
template <>
MX_INLINE Floats round_to<Bf16>(Floats value) {
#if defined(__AVX512BF16__)
    return (Floats)(widen((Shorts)_mm512_cvtneps_pbh((__m512)value)) << 16);
#else
    return (Floats)(bf16_bits(value) << 16);
#endif
}

/// Stores, and returns what was stored.
template <class T, class Lanes>
MX_INLINE Floats store_rounded(T* to, Floats value, Lanes lanes) {
    const Floats rounded = round_to<T>(value);
    store(to, rounded, lanes);
    return rounded;
}

#if defined(__AVX512BF16__)
/// One conversion instead of two.
MX_INLINE Floats store_rounded(Bf16* to, Floats value, AllLanes) {
    const Shorts bits = (Shorts)_mm512_cvtneps_pbh((__m512)value);
    std::memcpy(to, &bits, sizeof bits);
    return (Floats)(widen(bits) << 16);
}
#endif

// ---- reductions: the order of the lanes is fixed ----

/// Combines the upper half of the lanes with the lower half until one is left.
template <class Combine>
MX_INLINE float fold_lanes(Floats value, Combine combine) {
    float lane[kLanes];
    store(lane, value);
    for (int width = kLanes / 2; width > 0; width /= 2) {
        for (int i = 0; i < width; ++i) lane[i] = combine(lane[i], lane[i + width]);
    }
    return lane[0];
}

MX_INLINE float horizontal_sum(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)value);
#else
    return fold_lanes(value, [](float a, float b) { return a + b; });
#endif
}

MX_INLINE float horizontal_max(Floats value) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)value);
#else
    return fold_lanes(value, [](float a, float b) { return a > b ? a : b; });
#endif
}

MX_INLINE int32_t horizontal_sum(Ints value) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_epi32((__m512i)value);
#else
    int32_t sum = 0;
    for (int lane = 0; lane < kLanes; ++lane) sum += value[lane];
    return sum;
#endif
}

/// The largest lane of values that are not negative; a NaN counts as larger than every number.
MX_INLINE float horizontal_max_magnitude(Floats value) {
#if defined(__AVX512F__)
    return bits_float(_mm512_reduce_max_epu32((__m512i)value));
#else
    const Words bits = (Words)value;
    uint32_t largest = 0;
    for (int lane = 0; lane < kLanes; ++lane) largest = bits[lane] > largest ? bits[lane] : largest;
    return bits_float(largest);
#endif
}

/// 2^f for |f| <= 1/2: the Taylor polynomial of degree 6, off by at most 1.2e-7.
MX_INLINE Floats exp2_fraction(Floats f) {
    Floats power = splat(1.5403530e-4f);
    power = fma(power, f, splat(1.3333558e-3f));
    power = fma(power, f, splat(9.6181291e-3f));
    power = fma(power, f, splat(5.5504109e-2f));
    power = fma(power, f, splat(2.4022651e-1f));
    power = fma(power, f, splat(6.9314718e-1f));
    return fma(power, f, splat(1.0f));
}

/// e^x with a relative error of about 2e-7; exactly 1 at 0 and exactly 0 below -87 (also at -inf); NaN stays NaN.
///
/// x = (n + f) ln 2 with whole n and |f| <= 1/2, so e^x = 2^n 2^f.
MX_INLINE Floats exp(Floats x) {
    const Floats log2e = splat(1.44269504f);
#if defined(__AVX512F__)
    const __m512 n = _mm512_roundscale_ps((__m512)(x * log2e), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const Floats power = exp2_fraction(fma(x, log2e, -(Floats)n));
    const __mmask16 is_not_zero = _mm512_cmp_ps_mask((__m512)x, _mm512_set1_ps(-87.0f), _CMP_NLT_UQ);
    return (Floats)_mm512_maskz_scalef_ps(is_not_zero, (__m512)power, n);
#else
    const float round = 12582912.0f;  // 1.5 * 2^23: adding it drops the fraction, rounding to nearest
    const Floats bounded = min(max(x, splat(-87.0f)), splat(88.0f));
    const Floats n = fma(bounded, log2e, splat(round)) - round;
    const Floats power = exp2_fraction(fma(x, log2e, -n));  // from x, not from bounded: keeps NaN
    const Ints exponent = (__builtin_convertvector(n, Ints) + 127) << 23;
    return x < -87.0f ? Floats{} : power * (Floats)exponent;
#endif
}

}  // namespace mx
