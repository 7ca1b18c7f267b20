// Packs linear weights into the panels that panels.h and int8.h draw.
//
// A unit is what one step keeps of one column: a pair of bf16, one fp16 or one fp32. Packing transposes units,
// [64 columns][steps] -> [steps][64 columns], in blocks of 16 x 16: a column-wise walk over whole rows would hit the
// same few cache sets for every power-of-two K and run several times slower.

#include <algorithm>
#include <cstring>

#include "dispatch.h"
#include "int8.h"
#include "panels.h"
#include "parallel.h"

namespace mx {
namespace {

constexpr int kBlock = 16;

/// 16 units, as the compiler likes them best.
template <class Unit>
struct RowOf {
    typedef Unit type __attribute__((vector_size(kBlock * sizeof(Unit))));
};

/// Transposes 16 rows by interleaving the upper with the lower half four times (a perfect shuffle rotates the bits of
/// row and column number by one).
template <class Unit>
void transpose_whole_block(const Unit* from, int64_t from_stride, Unit* to) {
    using Row = typename RowOf<Unit>::type;
    Row rows[kBlock];
    for (int i = 0; i < kBlock; ++i) std::memcpy(&rows[i], from + i * from_stride, sizeof(Row));
    for (int round = 0; round < 4; ++round) {
        Row shuffled[kBlock];
        for (int i = 0; i < kBlock / 2; ++i) {
            const Row a = rows[i], b = rows[i + kBlock / 2];
            shuffled[2 * i] = __builtin_shufflevector(a, b, 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
            shuffled[2 * i + 1] =
                __builtin_shufflevector(a, b, 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31);
        }
        std::memcpy(rows, shuffled, sizeof rows);
    }
    for (int i = 0; i < kBlock; ++i) std::memcpy(to + i * kPanelColumns, &rows[i], sizeof(Row));
}

/// A block at the edge: fewer than 16 columns (the others become zero) or fewer than 16 steps.
template <class Unit>
void transpose_edge_block(const Unit* from, int64_t from_stride, int columns, int steps, Unit* to) {
    for (int step = 0; step < steps; ++step) {
        for (int column = 0; column < kBlock; ++column) {
            to[step * kPanelColumns + column] = column < columns ? from[column * from_stride + step] : Unit{};
        }
    }
}

template <class Unit>
void transpose_panel(const Unit* from, int64_t from_stride, int columns, int64_t steps, Unit* to) {
    for (int64_t step = 0; step < steps; step += kBlock) {
        const int block_steps = static_cast<int>(std::min<int64_t>(kBlock, steps - step));
        for (int column = 0; column < kPanelColumns; column += kBlock) {
            const int block_columns = std::clamp(columns - column, 0, kBlock);
            const Unit* block = from + column * from_stride + step;
            Unit* packed = to + step * kPanelColumns + column;
            if (block_columns == kBlock && block_steps == kBlock) {
                transpose_whole_block(block, from_stride, packed);
            } else {
                transpose_edge_block(block, from_stride, block_columns, block_steps, packed);
            }
        }
    }
}

/// The general way: any stride, odd K.
template <class T>
void pack_panel_by_element(const T* from, int64_t from_stride, int columns, int64_t depth, T* to) {
    constexpr int kDepth = kPackDepth<T>;
    std::memset(to, 0, sizeof(T) * static_cast<size_t>(panel_elements<T>(depth)));
    for (int64_t k = 0; k < depth; ++k) {
        T* step = to + (k / kDepth) * kPanelColumns * kDepth + k % kDepth;
        for (int column = 0; column < columns; ++column) step[column * kDepth] = from[column * from_stride + k];
    }
}

/// Unit type of whole-unit copies: 32 bits but for a single fp16.
template <class T>
struct UnitOf {
    using type = uint32_t;
};
template <>
struct UnitOf<Fp16> {
    using type = uint16_t;
};

template <class T>
void pack_panel(const T* from, int64_t from_stride, int columns, int64_t depth, T* to) {
    using Unit = typename UnitOf<T>::type;
    constexpr int kDepth = kPackDepth<T>;
    const bool whole_units = depth % kDepth == 0 && from_stride % kDepth == 0 &&
                             reinterpret_cast<uintptr_t>(from) % alignof(Unit) == 0;
    if (!whole_units) return pack_panel_by_element(from, from_stride, columns, depth, to);
    transpose_panel(reinterpret_cast<const Unit*>(from), from_stride / kDepth, columns, depth / kDepth,
                    reinterpret_cast<Unit*>(to));
}

template <class T>
void pack_linear(const T* weight, int64_t stride, int64_t out_features, int64_t in_features, T* packed) {
    const int64_t panels = panel_count(out_features);
    const int64_t elements = panel_elements<T>(in_features);
    Team::instance().run(panels, [&](int64_t panel) {
        const int64_t first = panel * kPanelColumns;
        const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, out_features - first));
        pack_panel(weight + first * stride, stride, columns, in_features, packed + panel * elements);
    });
}

/// Quantises `columns` rows of the weight into one panel of int8.h.
template <class T>
void pack_panel_int8(const T* from, int64_t from_stride, int columns, int64_t depth, char* to) {
    for (int64_t first = 0; first < depth; first += kInt8Group, to += kInt8BlockBytes) {
        std::memset(to, kInt8Offset, kInt8ScaleOffset);
        Bf16* scales = reinterpret_cast<Bf16*>(to + kInt8ScaleOffset);
        for (int column = 0; column < columns; ++column) {
            const GroupValues values(from + column * from_stride + first, depth - first);
            scales[column] = float_to_bf16(values.magnitude() / 127.0f);
            int8_t q[kInt8Group];
            values.quantise(bf16_to_float(scales[column]), q);
            for (int i = 0; i < kInt8Group; ++i) {
                to[i / 4 * kInt8QuadBytes + column * 4 + i % 4] = static_cast<char>(q[i] + kInt8Offset);
            }
        }
        for (int column = columns; column < kInt8Columns; ++column) scales[column] = Bf16{0};
    }
}

template <class T>
void pack_linear_int8(const T* weight, int64_t stride, int64_t out_features, int64_t in_features, char* packed) {
    const int64_t panels = divide_up(out_features, kInt8Columns);
    const int64_t panel_bytes = divide_up(in_features, kInt8Group) * kInt8BlockBytes;
    Team::instance().run(panels, [&](int64_t panel) {
        const int64_t first = panel * kInt8Columns;
        const int columns = static_cast<int>(std::min<int64_t>(kInt8Columns, out_features - first));
        pack_panel_int8(weight + first * stride, stride, columns, in_features, packed + panel * panel_bytes);
    });
}

}  // namespace
}  // namespace mx

int64_t mx_packed_bytes(int32_t dtype, int32_t format, int64_t out_features, int64_t in_features) {
    if (format == MX_INT8) {
        return mx::divide_up(out_features, mx::kInt8Columns) * mx::divide_up(in_features, mx::kInt8Group) *
               mx::kInt8BlockBytes;
    }
    return mx::dispatch(dtype, [&](auto element) {
        using T = decltype(element);
        return mx::panel_count(out_features) * mx::panel_elements<T>(in_features) * static_cast<int64_t>(sizeof(T));
    });
}

void mx_pack_linear(const MxPackLinearCall* call) {
    mx::dispatch(call->dtype, [&](auto element) {
        using T = decltype(element);
        const T* weight = static_cast<const T*>(call->weight);
        if (call->format == MX_INT8) {
            mx::pack_linear_int8(weight, call->weight_stride, call->out_features, call->in_features,
                                 static_cast<char*>(call->packed));
        } else {
            mx::pack_linear(weight, call->weight_stride, call->out_features, call->in_features,
                            static_cast<T*>(call->packed));
        }
    });
}
