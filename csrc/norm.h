// The RMS norm of one row, shared by the norm kernels and by the per-head norms of queries and keys.
#pragma once

#include <cmath>

#include "simd.h"

namespace mx {

template <class T>
inline float sum_of_squares(const T* x, int64_t count) {
    Floats squares = {};
    for_each_vector(count, [&](int64_t i, auto lanes) {
        const Floats value = load(x + i, lanes);
        squares = fma(value, value, squares);
    });
    return horizontal_sum(squares);
}

inline float inverse_rms(float squares, int64_t count, float eps) {
    return 1.0f / std::sqrt(squares / static_cast<float>(count) + eps);
}

/// `round(x * factor) * weight`; `x` and `out` may be the same row.
template <class T>
inline void scale_row(const T* x, float factor, const T* weight, int64_t count, T* out) {
    const Floats factors = splat(factor);
    for_each_vector(count, [&](int64_t i, auto lanes) {
        const Floats normalised = round_to<T>(load(x + i, lanes) * factors);
        store(out + i, normalised * load(weight + i, lanes), lanes);
    });
}

}  // namespace mx
