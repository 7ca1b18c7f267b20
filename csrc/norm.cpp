// RMS norm of rows, alone and fused with the residual addition before it.
//
//   x [M, H]  --(+ residual, rounded)-->  r = 1 / sqrt(mean(x^2) + eps)  -->  round(x * r) * weight
//
// Rounded where transformers' eager models round: to the dtype before the weight multiplies.

#include "dispatch.h"
#include "norm.h"
#include "parallel.h"

namespace mx {
namespace {

/// `residual += x`, rounded; returns the sum of squares of the rounded values.
template <class T>
float add_to_residual(const T* x, T* residual, int64_t hidden) {
    Floats squares = {};
    for_each_vector(hidden, [&](int64_t i, auto lanes) {
        const Floats sum = store_rounded(residual + i, load(x + i, lanes) + load(residual + i, lanes), lanes);
        squares = fma(sum, sum, squares);
    });
    return horizontal_sum(squares);
}

template <class T>
void rms_norm(const MxRmsNormCall& call) {
    const int64_t hidden = call.hidden;
    parallel_for(call.rows, hidden, [&](int64_t row) {
        const T* x = static_cast<const T*>(call.x) + row * call.x_stride;
        T* residual = static_cast<T*>(call.residual) + row * call.residual_stride;
        T* out = static_cast<T*>(call.out) + row * call.out_stride;
        const float squares = call.residual ? add_to_residual(x, residual, hidden) : sum_of_squares(x, hidden);
        const T* normalised = call.residual ? residual : x;
        scale_row(normalised, inverse_rms(squares, hidden, call.eps), static_cast<const T*>(call.weight), hidden, out);
    });
}

}  // namespace
}  // namespace mx

void mx_rms_norm(const MxRmsNormCall* call) {
    mx::dispatch(call->dtype, [&](auto element) { mx::rms_norm<decltype(element)>(*call); });
}
