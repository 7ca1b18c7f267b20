// Element types of weights, activations and the KV cache, with their scalar conversions.
#pragma once

#include <cstdint>
#include <cstring>

namespace mx {

/// The upper half of a float32.
struct Bf16 {
    uint16_t bits;
};

/// IEEE 754 binary16.
struct Fp16 {
    uint16_t bits;
};

inline uint32_t float_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}

inline float bits_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float bf16_to_float(Bf16 value) { return bits_float(static_cast<uint32_t>(value.bits) << 16); }

/// Rounds to nearest even; NaN becomes the quiet NaN.
inline Bf16 float_to_bf16(float value) {
    const uint32_t bits = float_bits(value);
    if (value != value) return {0x7fc0};
    return {static_cast<uint16_t>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16)};
}

/// Rounds to nearest even; overflow gives infinity, NaN stays NaN.
inline Fp16 float_to_half(float value) {
    const uint32_t bits = float_bits(value);
    const uint32_t sign = (bits >> 16) & 0x8000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    if (magnitude > 0x7f800000u) return {static_cast<uint16_t>(sign | 0x7e00u)};
    if (magnitude >= 0x477ff000u) return {static_cast<uint16_t>(sign | 0x7c00u)};  // 65520 and above
    if (magnitude < 0x38800000u) {  // below 2^-14: adding 0.5 aligns the mantissa with a subnormal half's
        const uint32_t aligned = float_bits(bits_float(magnitude) + 0.5f);
        return {static_cast<uint16_t>(sign | (aligned - 0x3f000000u))};
    }
    const uint32_t odd = (magnitude >> 13) & 1u;
    return {static_cast<uint16_t>(sign | ((magnitude - 0x38000000u + 0xfffu + odd) >> 13))};
}

}  // namespace mx
