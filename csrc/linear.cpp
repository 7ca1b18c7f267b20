// Linear layers whose weights have the type of the activations, packed as panels.h draws.

#include <type_traits>

#include "dispatch.h"
#include "gemm.h"
#include "linear_int4.h"
#include "linear_int8.h"
#include "panels.h"
#include "scratch.h"

namespace mx {
namespace {

/// The format of bf16, fp16 and fp32 weights (gemm.h).
template <class T>
struct FloatPanels {
    using Left = mx::Left<T>;
    static constexpr int kColumns = kPanelColumns;
    static constexpr int kStepDepth = kPackDepth<T>;
    static constexpr int kLeftPerStep = kPackDepth<T>;
    static constexpr int64_t kStepBytes = kPanelColumns * kPackDepth<T> * sizeof(T);
    static constexpr int kLinesPerStep = 1;
    static constexpr int64_t kStreamedRows = 8;
    static constexpr int64_t kPrefetchedRows = kChunkRows;

    /// `sums: [R][64]` is set, or added to when `is_continued`.
    template <int R>
    static void multiply_tile(const Left* x, int64_t x_stride, const char* panel, int64_t steps, float* sums,
                              bool is_continued, PrefetchRange next) {
        constexpr int kVectors = tile_vectors(R);
        for (int column = 0; column < kPanelColumns; column += kVectors * kLanes) {
            Floats sum[R][kVectors];
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < kVectors; ++v) {
                    sum[r][v] = is_continued ? load(sums + r * kPanelColumns + column + v * kLanes) : Floats{};
                }
            }
            const T* first = reinterpret_cast<const T*>(panel) + column * kPackDepth<T>;
            const auto right_at = [first](int64_t k, int v) {
                return first + k * kPanelColumns * kPackDepth<T> + v * kRightElements<T>;
            };
            const auto prefetch = [next](int64_t k) MX_ALWAYS_INLINE {
                __builtin_prefetch(next.start + k * kCacheLine, 0, 2);
            };
            accumulate<T>(sum, x, x_stride, {0, next.lines}, right_at, prefetch);
            accumulate<T>(sum, x, x_stride, {next.lines, steps}, right_at, no_prefetch);
            for (int r = 0; r < R; ++r) {
                for (int v = 0; v < kVectors; ++v) store(sums + r * kPanelColumns + column + v * kLanes, sum[r][v]);
            }
        }
    }
};

template <class To, class From>
void convert_row(const From* from, int64_t count, To* to, int64_t padded) {
    for_each_vector(count, [&](int64_t k, auto lanes) { store(to + k, load(from + k, lanes), lanes); });
    for (int64_t k = count; k < padded; ++k) to[k] = To{};
}

/// Activations as the product reads them; the caller's own memory when nothing has to change.
template <class T>
const Left<T>* prepare_left(const T* x, int64_t& x_stride, int64_t rows, int64_t in_features) {
    const int64_t padded = padded_depth<T>(in_features);
    if constexpr (std::is_same_v<Left<T>, T>) {
        if (padded == in_features) return x;
    }
    static thread_local Scratch scratch;
    Left<T>* prepared = scratch.get<Left<T>>(rows * padded);
    parallel_for(rows, padded, [&](int64_t row) {
        convert_row(x + row * x_stride, in_features, prepared + row * padded, padded);
    });
    x_stride = padded;
    return prepared;
}

template <class T, class Out>
void linear(const MxLinear& layer, const T* x, int64_t x_stride, int64_t rows, Out* out, int64_t out_stride) {
    if (rows <= 0) return;
    const Left<T>* prepared = prepare_left(x, x_stride, rows, layer.in_features);
    Gemm<FloatPanels<T>, Out>{layer, prepared, x_stride, rows, out, out_stride}.run();
}

}  // namespace
}  // namespace mx

void mx_linear(const MxLinearCall* call) {
    mx::dispatch_output(call->dtype, call->out_is_fp32, [&](auto element, auto output) {
        using T = decltype(element);
        using Out = decltype(output);
        const int32_t format = call->layer->format;
        const auto compute = format == MX_INT8   ? mx::linear_int8<T, Out>
                             : format == MX_INT4 ? mx::linear_int4<T, Out>
                                                 : mx::linear<T, Out>;
        compute(*call->layer, static_cast<const T*>(call->x), call->x_stride, call->rows,
                static_cast<Out*>(call->out), call->out_stride);
    });
}
