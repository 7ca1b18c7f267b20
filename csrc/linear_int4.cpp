// Linear layers with int4 weights: quantises the activations to int8, then multiplies as gemm.h says. Layout: int4.h.

#include "linear_int4.h"

#include "gemm.h"
#include "int4.h"
#include "scratch.h"

namespace mx {
namespace {

/// Vectors of a pass over a tile's columns, so that its integer and float32 sums fit the registers.
constexpr int int4_tile_vectors(int rows) {
    if (kVectorRegisters == 32) return rows <= 2 ? 4 : 2;
    return rows <= 2 ? 2 : 1;
}

/// The format of int4 weights (gemm.h); a step is one block, G inputs deep.
template <int G>
struct Int4Panels {
    using Left = Int4Group;
    static constexpr int kColumns = kInt4Columns;
    static constexpr int kStepDepth = G;
    static constexpr int kLeftPerStep = G / kInt8Group;
    static constexpr int64_t kStepBytes = int4_block_bytes(G);
    static constexpr int kRows = G / kInt4RowDepth;
    static constexpr int kLinesPerRow = 2;
    static constexpr int kLinesPerStep = kRows * kLinesPerRow;
    static constexpr int64_t kStreamedRows = 1;
    static constexpr int64_t kPrefetchedRows = kChunkRows;
    static constexpr int64_t kPassSteps = 128 / G;

    template <int R>
    static void multiply_tile(const Int4Group* x, int64_t x_stride, const char* panel, int64_t steps, float* sums,
                              bool is_continued, PrefetchRange next) {
        constexpr int V = int4_tile_vectors(R);
        const int64_t fetching = next.lines / kLinesPerStep;  // the few lines of a last part are left out
        // Pass over the columns of a few blocks, not of the whole panel: so the panel comes in from memory in order.
        for (int64_t first = 0; first < steps; first += kPassSteps) {
            const int64_t last = std::min(first + kPassSteps, steps);
            for (int column = 0; column < kInt4Columns; column += V * kLanes) {
                Floats sum[R][V];
                for (int r = 0; r < R; ++r) {
                    for (int v = 0; v < V; ++v) {
                        const float* from = sums + r * kInt4Columns + column + v * kLanes;
                        sum[r][v] = first > 0 || is_continued ? load(from) : Floats{};
                    }
                }
                for (int64_t step = first; step < last; ++step) {
                    const Int4Group* left = x + step * kLeftPerStep;
                    const char* block = panel + step * kStepBytes;
                    if (column == 0 && step < fetching) {
                        const char* lines = next.start + step * kLinesPerStep * kCacheLine;
                        add_block<R, V>(sum, left, x_stride, block, column, [lines](int row) MX_ALWAYS_INLINE {
                            const char* line = lines + row * kLinesPerRow * kCacheLine;
                            __builtin_prefetch(line, 0, 2);
                            __builtin_prefetch(line + kCacheLine, 0, 2);
                        });
                    } else {
                        add_block<R, V>(sum, left, x_stride, block, column, [](int) {});
                    }
                }
                for (int r = 0; r < R; ++r) {
                    for (int v = 0; v < V; ++v) store(sums + r * kInt4Columns + column + v * kLanes, sum[r][v]);
                }
            }
        }
    }

private:
    /// Adds the products of one block.
    template <int R, int V, class Prefetch>
    static MX_INLINE void add_block(Floats (&sum)[R][V], const Int4Group* x, int64_t x_stride, const char* block,
                                    int column, Prefetch prefetch) {
        const Fp16* scales = reinterpret_cast<const Fp16*>(block + int4_scale_offset(G)) + column;
        const uint8_t* zeros = reinterpret_cast<const uint8_t*>(block + int4_zero_offset(G)) + column;
        Floats scale[V];
        Words zero[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            scale[v] = load(scales + v * kLanes);
            zero[v] = load_bytes(zeros + v * kLanes);
        }
        const char* weights = block + column * 4;
        for (int group = 0; group < kLeftPerStep; ++group, ++x) {
            Int4Sum whole[R][V];
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) whole[r][v] = start_sum(zero[v], x[r * x_stride].start);
            }
#pragma GCC unroll 4
            for (int row = 0; row < kInt8Group / kInt4RowDepth; ++row, weights += kInt4RowBytes) {
                prefetch(group * (kInt8Group / kInt4RowDepth) + row);
                add_row(whole, x, x_stride, row, weights);
            }
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const Floats row_scale = splat(x[r * x_stride].scale);
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) {
                    const Ints products = finish_sum(whole[r][v], zero[v], x[r * x_stride].start);
                    sum[r][v] = fma(to_floats(products) * scale[v], row_scale, sum[r][v]);
                }
            }
        }
    }

    /// Adds the products of eight inputs, the `row`-th eight of a group of activations.
    template <int R, int V>
    static MX_INLINE void add_row(Int4Sum (&whole)[R][V], const Int4Group* x, int64_t x_stride, int row,
                                  const char* weights) {
        Int4Weights low[V], high[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const Words bytes = load_words(weights + v * kLanes * 4);
            low[v] = prepare_nibbles(bytes & kNibbles);
            high[v] = prepare_nibbles(bytes >> 4 & kNibbles);
        }
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const auto* quads = x[r * x_stride].quads + 2 * row;
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) {
                whole[r][v] = add_nibbles(whole[r][v], low[v], quads[0]);
                whole[r][v] = add_nibbles(whole[r][v], high[v], quads[1]);
            }
        }
    }
};

/// Calls `function(Int4Panels<group_size>{})`.
template <class Function>
void dispatch_group_size(int group_size, Function function) {
    switch (group_size) {
        case 32: return function(Int4Panels<32>{});
        case 64: return function(Int4Panels<64>{});
        default: return function(Int4Panels<128>{});
    }
}

/// The row's values in the order of the weights.
template <class T>
const T* reorder(const T* x, const int32_t* order, int64_t depth) {
    static thread_local Scratch scratch;
    T* ordered = scratch.get<T>(depth);
    for (int64_t k = 0; k < depth; ++k) ordered[k] = x[order[k]];
    return ordered;
}

}  // namespace

template <class T, class Out>
void linear_int4(const MxLinear& layer, const T* x, int64_t x_stride, int64_t rows, Out* out, int64_t out_stride) {
    if (rows <= 0) return;
    static thread_local Scratch scratch;
    const int64_t depth = layer.in_features;
    const int64_t groups = divide_up(depth, layer.group_size) * (layer.group_size / kInt8Group);
    Int4Group* quantised = scratch.get<Int4Group>(rows * groups);
    parallel_for(rows, depth, [&](int64_t row) {
        const T* values = x + row * x_stride;
        if (layer.input_order) values = reorder(values, layer.input_order, depth);
        quantise_row(values, depth, 1, groups, quantised + row * groups);
    });
    dispatch_group_size(layer.group_size, [&](auto format) {
        Gemm<decltype(format), Out>{layer, quantised, groups, rows, out, out_stride}.run();
    });
}

template void linear_int4(const MxLinear&, const Bf16*, int64_t, int64_t, Bf16*, int64_t);
template void linear_int4(const MxLinear&, const Bf16*, int64_t, int64_t, float*, int64_t);
template void linear_int4(const MxLinear&, const Fp16*, int64_t, int64_t, Fp16*, int64_t);
template void linear_int4(const MxLinear&, const Fp16*, int64_t, int64_t, float*, int64_t);
template void linear_int4(const MxLinear&, const float*, int64_t, int64_t, float*, int64_t);

}  // namespace mx
