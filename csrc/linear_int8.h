// What linear.cpp calls for a layer with int8 weights.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace mx {

/// out[rows, N] = x[rows, K] * weight^T + bias, with x quantised on the way; T and Out are element types.
template <class T, class Out>
void linear_int8(const MxLinear& layer, const T* x, int64_t x_stride, int64_t rows, Out* out, int64_t out_stride);

}  // namespace mx
