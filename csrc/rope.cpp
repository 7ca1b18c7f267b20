// Per-head norm and rotary embedding of queries and keys, and the write of keys and values into the paged cache.
//
//   qkv row: [ q head 0 | q head 1 | ... | k head 0 | ... | v head 0 | ... ]
//               rotated in place           rotated, then   scattered to the
//                                          scattered       slot's group (kv_layout.h)
//
//   rotate-half convention: (a, b) = (x[0 .. D/2), x[D/2 .. D))  ->  (a cos - b sin, b cos + a sin)

#include "dispatch.h"
#include "kv_int8.h"
#include "kv_plain.h"
#include "norm.h"
#include "parallel.h"

namespace mx {
namespace {

template <class T>
void rotate(T* head, const float* cos_sin, int head_dim) {
    const int half = head_dim / 2;
    for_each_vector(half, [&](int64_t i, auto lanes) {
        const Floats cosine = load(cos_sin + i, lanes);
        const Floats sine = load(cos_sin + half + i, lanes);
        const Floats a = load(head + i, lanes);
        const Floats b = load(head + half + i, lanes);
        store(head + i, fma(a, cosine, -(b * sine)), lanes);
        store(head + half + i, fma(b, cosine, a * sine), lanes);
    });
}

/// `norm` is the weight of the per-head RMS norm, or null.
template <class T>
void norm_and_rotate(T* head, const T* norm, float eps, const float* cos_sin, int head_dim) {
    if (norm) {
        const float inverse = inverse_rms(sum_of_squares(head, head_dim), head_dim, eps);
        scale_row(head, inverse, norm, head_dim, head);
    }
    rotate(head, cos_sin, head_dim);
}

template <class T, class Format>
struct RopeKvWrite {
    const MxGeometry& geometry;
    const MxStep& step;
    const T* q_norm;
    const T* k_norm;
    float eps;
    const float* cos_sin;
    char* key_cache;
    char* value_cache;

    void run(T* qkv, int64_t qkv_stride) const {
        const int64_t width = int64_t{geometry.num_heads + 2 * geometry.num_kv_heads} * geometry.head_dim;
        parallel_for(step.num_tokens, width,
                     [&](int64_t token) { run_token(qkv + token * qkv_stride, token); });
    }

    void run_token(T* row, int64_t token) const {
        const int dim = geometry.head_dim;
        const float* angles = cos_sin + static_cast<int64_t>(step.positions[token]) * dim;
        for (int head = 0; head < geometry.num_heads; ++head) {
            norm_and_rotate(row + head * dim, q_norm, eps, angles, dim);
        }
        T* keys = row + geometry.num_heads * dim;
        for (int head = 0; head < geometry.num_kv_heads; ++head) {
            norm_and_rotate(keys + head * dim, k_norm, eps, angles, dim);
        }
        write(keys, keys + geometry.num_kv_heads * dim, step.slot_mapping[token]);
    }

    void write(const T* keys, const T* values, int64_t slot) const {
        const int dim = geometry.head_dim;
        const int64_t block = slot / geometry.block_size;
        const int64_t position = slot % geometry.block_size;
        const int token = static_cast<int>(position % kGroupTokens);
        for (int head = 0; head < geometry.num_kv_heads; ++head) {
            const int64_t group = group_index(geometry, block, head, position);
            Format::write_key(keys + head * dim, dim, token, key_cache + group * Format::key_bytes(dim));
            Format::write_value(values + head * dim, dim, token, value_cache + group * Format::value_bytes(dim));
        }
    }
};

template <class Format, class T>
void rope_kv_write(const MxRopeKvWriteCall& call, T* qkv) {
    const RopeKvWrite<T, Format> kernel{*call.geometry,
                                        *call.step,
                                        static_cast<const T*>(call.q_norm),
                                        static_cast<const T*>(call.k_norm),
                                        call.eps,
                                        call.cos_sin,
                                        static_cast<char*>(call.key_cache),
                                        static_cast<char*>(call.value_cache)};
    kernel.run(qkv, call.qkv_stride);
}

}  // namespace
}  // namespace mx

void mx_rope_kv_write(const MxRopeKvWriteCall* call) {
    mx::dispatch(call->dtype, [&](auto element) {
        using T = decltype(element);
        T* qkv = static_cast<T*>(call->qkv);
        if (call->geometry->kv_format == MX_KV_INT8) {
            mx::rope_kv_write<mx::Int8Kv>(*call, qkv);
        } else {
            mx::rope_kv_write<mx::PlainKv<T>>(*call, qkv);
        }
    });
}
