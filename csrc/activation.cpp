// The gated activation of Llama-like MLPs.
//
//   gate_up row: [ gate (I) | up (I) ]  -->  out row: round(silu(gate)) * up (I)

#include "dispatch.h"
#include "parallel.h"
#include "simd.h"

namespace mx {
namespace {

template <class T>
void silu_mul_row(const T* gate, const T* up, int64_t inner, T* out) {
    for_each_vector(inner, [&](int64_t i, auto lanes) {
        const Floats x = load(gate + i, lanes);
        const Floats silu = round_to<T>(x / (exp(-x) + 1.0f));
        store(out + i, silu * load(up + i, lanes), lanes);
    });
}

template <class T>
void silu_mul(const MxSiluMulCall& call) {
    parallel_for(call.rows, call.inner, [&](int64_t row) {
        const T* gate = static_cast<const T*>(call.gate_up) + row * call.gate_up_stride;
        silu_mul_row(gate, gate + call.inner, call.inner, static_cast<T*>(call.out) + row * call.out_stride);
    });
}

}  // namespace
}  // namespace mx

void mx_silu_mul(const MxSiluMulCall* call) {
    mx::dispatch(call->dtype, [&](auto element) { mx::silu_mul<decltype(element)>(*call); });
}
