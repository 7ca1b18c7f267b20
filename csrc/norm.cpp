// RMS norm of the residual stream, alone and fused with the addition before it.
//
//   residual [M, H] (+= x)  -->  r = 1 / sqrt(mean(residual^2) + eps)  -->  residual * r * weight, rounded
//
// The residual stream is float32 whatever the model's dtype: it is a sum over all layers, and rounding it at each of them
// makes half of the error that bfloat16 has in all (docs/log.md).

#include "dispatch.h"
#include "norm.h"
#include "parallel.h"

namespace mx {
namespace {

/// `residual += x`; returns the sum of squares.
template <class T>
float add_to_residual(const T* x, float* residual, int64_t hidden) {
    Floats squares = {};
    for_each_vector(hidden, [&](int64_t i, auto lanes) {
        const Floats sum = load(x + i, lanes) + load(residual + i, lanes);
        store(residual + i, sum, lanes);
        squares = fma(sum, sum, squares);
    });
    return horizontal_sum(squares);
}

template <class T>
void rms_norm(const MxRmsNormCall& call) {
    const int64_t hidden = call.hidden;
    const T* weight = static_cast<const T*>(call.weight);
    parallel_for(call.rows, hidden, [&](int64_t row) {
        const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
        float* residual = call.residual + row * call.residual_stride;
        T* out = static_cast<T*>(call.out) + row * call.out_stride;
        const float squares = call.x ? add_to_residual(x, residual, hidden) : sum_of_squares(residual, hidden);
        const Floats factors = splat(inverse_rms(squares, hidden, call.eps));
        for_each_vector(hidden, [&](int64_t i, auto lanes) {
            store(out + i, load(residual + i, lanes) * factors * load(weight + i, lanes), lanes);
        });
    });
}

}  // namespace
}  // namespace mx

void mx_rms_norm(const MxRmsNormCall* call) {
    mx::dispatch(call->dtype, [&](auto element) { mx::rms_norm<decltype(element)>(*call); });
}
