// What linear.cpp calls for a layer with int4 weights.
#pragma once

#include <cstdint>

#include "kernels.h"

namespace mx {

/// out[rows, N] = x[rows, K] * weight^T + bias, with x quantised to int8 on the way; T and Out are element types.
template <class T, class Out>
void linear_int4(const MxLinear& layer, const T* x, int64_t x_stride, int64_t rows, Out* out, int64_t out_stride);

}  // namespace mx
