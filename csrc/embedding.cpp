// Gathers embedding rows, from a table or from the packed output head that a model shares with its embedding.
//
//   token_ids [M]: 7 2 7      weight [V, H]      out [M, H]: row 7, row 2, row 7, as they are or as float32

#include <algorithm>
#include <cstring>
#include <type_traits>

#include "dispatch.h"
#include "int4.h"
#include "int8.h"
#include "panels.h"
#include "parallel.h"

namespace mx {
namespace {

template <class T, class Out>
void embedding(const MxEmbeddingCall& call) {
    parallel_for(call.rows, call.hidden, [&](int64_t row) {
        const T* from = static_cast<const T*>(call.weight) + call.token_ids[row] * call.weight_stride;
        Out* out = static_cast<Out*>(call.out) + row * call.out_stride;
        if constexpr (std::is_same_v<T, Out>) {
            std::memcpy(out, from, static_cast<size_t>(call.hidden) * sizeof(T));
        } else {
            for_each_vector(call.hidden, [&](int64_t i, auto lanes) { store(out + i, load(from + i, lanes), lanes); });
        }
    });
}

/// Column `column` of the panels of panels.h.
template <class T>
void unpack_plain(const MxLinear& layer, int64_t column, float* out) {
    constexpr int kDepth = kPackDepth<T>;
    constexpr int kRun = 32;
    const T* from = static_cast<const T*>(layer.weights) +
                    column / kPanelColumns * panel_elements<T>(layer.in_features) + column % kPanelColumns * kDepth;
    for (int64_t first = 0; first < layer.in_features; first += kRun) {
        const int64_t count = std::min<int64_t>(kRun, layer.in_features - first);
        T values[kRun] = {};
        for (int64_t i = 0; i < count; ++i) {
            values[i] = from[(first + i) / kDepth * kPanelColumns * kDepth + (first + i) % kDepth];
        }
        for_each_vector(count, [&](int64_t i, auto lanes) { store(out + first + i, load(values + i), lanes); });
    }
}

/// Column `column` of the blocks of int8.h, as the numbers they stand for.
void unpack_int8(const MxLinear& layer, int64_t column, float* out) {
    const int64_t groups = divide_up(layer.in_features, kInt8Group);
    const char* block = static_cast<const char*>(layer.weights) + column / kInt8Columns * groups * kInt8BlockBytes;
    const int64_t place = column % kInt8Columns;
    for (int64_t first = 0; first < layer.in_features; first += kInt8Group, block += kInt8BlockBytes) {
        const float scale = bf16_to_float(reinterpret_cast<const Bf16*>(block + kInt8ScaleOffset)[place]);
        const int64_t count = std::min<int64_t>(kInt8Group, layer.in_features - first);
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t weight = static_cast<uint8_t>(block[i / 4 * kInt8QuadBytes + place * 4 + i % 4]);
            out[first + i] = static_cast<float>(weight - kInt8Offset) * scale;
        }
    }
}

/// Column `column` of the blocks of int4.h, as the numbers they stand for, inputs in the order of the model.
void unpack_int4(const MxLinear& layer, int64_t column, float* out) {
    const int group_size = layer.group_size;
    const int64_t groups = divide_up(layer.in_features, group_size);
    const int64_t panel = column / kInt4Columns;
    const char* block = static_cast<const char*>(layer.weights) + panel * groups * int4_block_bytes(group_size);
    const int64_t place = column % kInt4Columns;
    for (int64_t first = 0; first < layer.in_features; first += group_size, block += int4_block_bytes(group_size)) {
        Fp16 scales[kLanes] = {reinterpret_cast<const Fp16*>(block + int4_scale_offset(group_size))[place]};
        const float scale = load(scales)[0];
        const int zero = static_cast<uint8_t>(block[int4_zero_offset(group_size) + place]);
        const int64_t count = std::min<int64_t>(group_size, layer.in_features - first);
        for (int64_t i = 0; i < count; ++i) {
            const uint8_t pair = static_cast<uint8_t>(block[i / kInt4RowDepth * kInt4RowBytes + place * 4 + i % 4]);
            const int weight = i % kInt4RowDepth < 4 ? pair & 15 : pair >> 4;
            const int64_t input = layer.input_order ? layer.input_order[first + i] : first + i;
            out[input] = static_cast<float>(weight - zero) * scale;
        }
    }
}

template <class T>
void tied_embedding(const MxTiedEmbeddingCall& call) {
    const MxLinear& head = *call.head;
    const auto unpack = head.format == MX_INT8 ? unpack_int8 : head.format == MX_INT4 ? unpack_int4 : unpack_plain<T>;
    parallel_for(call.rows, head.in_features, [&](int64_t row) {
        unpack(head, call.token_ids[row], call.out + row * call.out_stride);
    });
}

}  // namespace
}  // namespace mx

void mx_embedding(const MxEmbeddingCall* call) {
    mx::dispatch_output(call->dtype, call->is_fp32, [&](auto element, auto output) {
        mx::embedding<decltype(element), decltype(output)>(*call);
    });
}

void mx_tied_embedding(const MxTiedEmbeddingCall* call) {
    mx::dispatch(call->dtype, [&](auto element) { mx::tied_embedding<decltype(element)>(*call); });
}
