// Linear layers with int8 weights: quantises the activations, then multiplies as gemm.h says. Layout: int8.h.

#include "linear_int8.h"

#include "gemm.h"
#include "int8.h"
#include "scratch.h"

namespace mx {
namespace {

/// Vectors of a pass over a tile's columns, so that its integer and float32 sums fit the registers.
constexpr int int8_tile_vectors(int rows) { return kVectorRegisters == 32 || rows <= 2 ? 2 : 1; }

/// The format of int8 weights (gemm.h); a step is one group.
struct Int8Panels {
    using Left = Int8Group;
    static constexpr int kColumns = kInt8Columns;
    static constexpr int kStepDepth = kInt8Group;
    static constexpr int kLeftPerStep = 1;
    static constexpr int64_t kStepBytes = kInt8BlockBytes;
    static constexpr int kLinesPerStep = kInt8Quads;
    static constexpr int64_t kStreamedRows = kMaxTileRows;
    static constexpr int64_t kPrefetchedRows = 20;

    template <int R>
    static void multiply_tile(const Int8Group* x, int64_t x_stride, const char* panel, int64_t steps, float* sums,
                              bool is_continued, PrefetchRange next) {
        constexpr int V = int8_tile_vectors(R);
        for (int column = 0; column < kInt8Columns; column += V * kLanes) {
            Floats sum[R][V];
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < V; ++v) {
                    sum[r][v] = is_continued ? load(sums + r * kInt8Columns + column + v * kLanes) : Floats{};
                }
            }
            const int64_t fetching = next.lines / kInt8Quads;  // the few lines of a last part are left out
            for (int64_t step = 0; step < fetching; ++step) {
                const char* lines = next.start + step * kInt8Quads * kCacheLine;
                const auto prefetch = [lines](int quad) MX_ALWAYS_INLINE {
                    __builtin_prefetch(lines + quad * kCacheLine, 0, 2);
                };
                add_group<R, V>(sum, x + step, x_stride, panel + step * kInt8BlockBytes, column, prefetch);
            }
            for (int64_t step = fetching; step < steps; ++step) {
                add_group<R, V>(sum, x + step, x_stride, panel + step * kInt8BlockBytes, column, [](int) {});
            }
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < V; ++v) store(sums + r * kInt8Columns + column + v * kLanes, sum[r][v]);
            }
        }
    }

private:
    /// Adds the products of one group.
    template <int R, int V, class Prefetch>
    static MX_INLINE void add_group(Floats (&sum)[R][V], const Int8Group* x, int64_t x_stride, const char* block,
                                    int column, Prefetch prefetch) {
        Ints whole[R][V];
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) whole[r][v] = Ints{} + x[r * x_stride].start;
        }
        const char* weights = block + column * 4;
#pragma GCC unroll 8
        for (int quad = 0; quad < kInt8Quads; ++quad) {
            prefetch(quad);
            Int8Weights w[V];
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) {
                w[v] = prepare_weights(load_words(weights + quad * kInt8QuadBytes + v * kLanes * 4));
            }
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const Int8Quad& activations = x[r * x_stride].quads[quad];
#pragma GCC unroll 2
                for (int v = 0; v < V; ++v) whole[r][v] = add_products(whole[r][v], w[v], activations);
            }
        }
        const Bf16* scales = reinterpret_cast<const Bf16*>(block + kInt8ScaleOffset) + column;
        Floats scale[V];
#pragma GCC unroll 2
        for (int v = 0; v < V; ++v) scale[v] = load(scales + v * kLanes);
#pragma GCC unroll 6
        for (int r = 0; r < R; ++r) {
            const Floats row_scale = splat(x[r * x_stride].scale);
#pragma GCC unroll 2
            for (int v = 0; v < V; ++v) sum[r][v] = fma(to_floats(whole[r][v]) * scale[v], row_scale, sum[r][v]);
        }
    }
};

}  // namespace

template <class T, class Out>
void linear_int8(const MxLinear& layer, const T* x, int64_t x_stride, int64_t rows, Out* out, int64_t out_stride) {
    if (rows <= 0) return;
    static thread_local Scratch scratch;
    const int64_t groups = divide_up(layer.in_features, kInt8Group);
    Int8Group* quantised = scratch.get<Int8Group>(rows * groups);
    parallel_for(rows, layer.in_features, [&](int64_t row) {
        quantise_row(x + row * x_stride, layer.in_features, kInt8Offset, groups, quantised + row * groups);
    });
    Gemm<Int8Panels, Out>{layer, quantised, groups, rows, out, out_stride}.run();
}

template void linear_int8(const MxLinear&, const Bf16*, int64_t, int64_t, Bf16*, int64_t);
template void linear_int8(const MxLinear&, const Bf16*, int64_t, int64_t, float*, int64_t);
template void linear_int8(const MxLinear&, const Fp16*, int64_t, int64_t, Fp16*, int64_t);
template void linear_int8(const MxLinear&, const Fp16*, int64_t, int64_t, float*, int64_t);
template void linear_int8(const MxLinear&, const float*, int64_t, int64_t, float*, int64_t);

}  // namespace mx
