// Gathers embedding rows.
//
//   token_ids [M]: 7 2 7      weight [V, H]      out [M, H]: row 7, row 2, row 7

#include <cstring>

#include "dispatch.h"
#include "parallel.h"

namespace mx {
namespace {

template <class T>
void embedding(const MxEmbeddingCall& call) {
    const size_t row_bytes = static_cast<size_t>(call.hidden) * sizeof(T);
    parallel_for(call.rows, call.hidden, [&](int64_t row) {
        const T* from = static_cast<const T*>(call.weight) + call.token_ids[row] * call.weight_stride;
        std::memcpy(static_cast<T*>(call.out) + row * call.out_stride, from, row_bytes);
    });
}

}  // namespace
}  // namespace mx

void mx_embedding(const MxEmbeddingCall* call) {
    mx::dispatch(call->dtype, [&](auto element) { mx::embedding<decltype(element)>(*call); });
}
