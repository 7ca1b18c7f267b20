// Linear layers: out[M, N] = x[M, K] * weight[N, K]^T + bias, weights packed as panels.h draws.
//
//                    panel 0      panel 1      ...          a task = (row chunk, panel), taken dynamically
//                  +-----------+-----------+
//                  | 64 columns|           |
//                  +-----------+-----------+
//   row chunk 0    |  task 0   |  task 1   |   a chunk's rows stay in the cache while panels stream past
//   (<= 192 rows)  |           |           |
//                  +-----------+-----------+
//   row chunk 1    |           |           |   inside a task: tiles of up to 6 rows x 64 columns
//                  +-----------+-----------+
//
// While a tile is computed, it prefetches its share of the panel this thread will probably need next. Deep layers are
// cut along K so that rows and panel fit the second-level cache together; the sums between two cuts wait as float32,
// which loses nothing, so a result does not depend on the cut, the chunk, the tile or the thread.

#include <algorithm>
#include <type_traits>

#include "dispatch.h"
#include "panels.h"
#include "parallel.h"
#include "scratch.h"
#include "tile.h"

namespace mx {
namespace {

constexpr int64_t kChunkRows = 192;
constexpr int64_t kWholeRows = 96;  // up to here one chunk holds all rows
constexpr int64_t kDepthCut = 4096;
constexpr int64_t kCacheLine = 64;
constexpr int64_t kStreamedRows = 4;          // up to so many rows, weights come in as fast as memory gives them anyway
constexpr int64_t kSerialWeights = 1 << 19;   // layers of up to so many weights, which one core's cache holds, ...
constexpr int64_t kSerialProducts = 1 << 20;  // ... and so many multiplications stay on the calling thread

/// Lines of the next panel that one tile asks for: one in each of its first steps.
struct PrefetchRange {
    const char* start = nullptr;
    int64_t lines = 0;
};

/// One tile over a cut of K: `sums: [R][64]` is set, or added to when `is_continued`.
template <class T, int R>
void multiply_tile(const Left<T>* x, int64_t x_stride, const T* panel, int64_t steps, float* sums, bool is_continued,
                   PrefetchRange next) {
    constexpr int kVectors = tile_vectors(R);
    for (int column = 0; column < kPanelColumns; column += kVectors * kLanes) {
        Floats sum[R][kVectors];
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < kVectors; ++v) {
                sum[r][v] = is_continued ? load(sums + r * kPanelColumns + column + v * kLanes) : Floats{};
            }
        }
        const T* first = panel + column * kPackDepth<T>;
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

template <class T>
using MultiplyTile = void (*)(const Left<T>*, int64_t, const T*, int64_t, float*, bool, PrefetchRange);

template <class T>
constexpr MultiplyTile<T> kMultiplyTile[kMaxTileRows + 1] = {
    nullptr,
    multiply_tile<T, 1>, multiply_tile<T, 2>, multiply_tile<T, 3>,
    multiply_tile<T, 4>, multiply_tile<T, 5>, multiply_tile<T, 6>};

/// Rounds and stores `sums: [rows][64]` plus bias; columns past `columns` are not touched.
template <class Out>
void store_tile(const float* sums, int rows, const float* bias, int columns, Out* out, int64_t out_stride) {
    for_each_vector(columns, [&](int64_t column, auto lanes) {
        const Floats offset = bias ? load(bias + column, lanes) : Floats{};
        for (int r = 0; r < rows; ++r) {
            const Floats sum = load(sums + r * kPanelColumns + column);
            store(out + r * out_stride + column, bias ? sum + offset : sum, lanes);
        }
    });
}

template <class T, class Out>
struct Gemm {
    const MxLinear& layer;
    const Left<T>* x;
    int64_t x_stride;
    int64_t rows;
    Out* out;
    int64_t out_stride;

    int64_t panels() const { return panel_count(layer.out_features); }
    int64_t panel_size() const { return panel_elements<T>(layer.in_features); }

    void run() const {
        const int64_t chunk_rows = rows <= kWholeRows ? rows : kChunkRows;
        const int64_t chunks = divide_up(rows, chunk_rows);
        const int64_t count = panels();
        const int threads = omp_get_max_threads();
        parallel_tasks(chunks, count, is_small(), [&](int64_t chunk, int64_t panel) {
            const int64_t first = chunk * chunk_rows;
            run_task(first, std::min(chunk_rows, rows - first), panel, panel + threads);
        });
    }

    bool is_small() const {
        const int64_t weights = layer.in_features * layer.out_features;
        return weights <= kSerialWeights && rows * weights <= kSerialProducts;
    }

    void run_task(int64_t first_row, int64_t task_rows, int64_t panel, int64_t next_panel) const {
        alignas(64) float sums[kChunkRows * kPanelColumns];
        const T* weights = static_cast<const T*>(layer.weights) + panel * panel_size();
        const bool is_prefetching = task_rows > kStreamedRows && next_panel < panels();
        const T* next = is_prefetching ? weights + (next_panel - panel) * panel_size() : nullptr;
        const RowTiles tiles(task_rows);
        const int64_t depth = padded_depth<T>(layer.in_features);
        const int64_t cut = tiles.count > 1 ? kDepthCut : depth;
        for (int64_t k = 0; k < depth; k += cut) {
            const int64_t length = std::min(cut, depth - k);
            for (int64_t tile = 0; tile < tiles.count; ++tile) {
                const int64_t row = tiles.first_row(tile);
                float* tile_sums = sums + (cut < depth ? row * kPanelColumns : 0);
                kMultiplyTile<T>[tiles.rows(tile)](x + (first_row + row) * x_stride + k, x_stride,
                                                   weights + k * kPanelColumns, length / kPackDepth<T>, tile_sums,
                                                   k > 0, share(next, k, length, tile, tiles.count));
                if (k + length == depth) store_rows(tile_sums, first_row + row, tiles.rows(tile), panel);
            }
        }
    }

    /// The part of the next panel's same cut of K that this tile prefetches.
    static PrefetchRange share(const T* next, int64_t k, int64_t length, int64_t tile, int64_t tiles) {
        if (!next) return {};
        const int64_t total = length * kPanelColumns * static_cast<int64_t>(sizeof(T)) / kCacheLine;
        const int64_t lines = std::min(divide_up(total, tiles), length / kPackDepth<T>);
        const int64_t first = std::min(tile * lines, total);
        const char* start = reinterpret_cast<const char*>(next + k * kPanelColumns) + first * kCacheLine;
        return {start, std::min(lines, total - first)};
    }

    void store_rows(const float* sums, int64_t row, int count, int64_t panel) const {
        const int64_t column = panel * kPanelColumns;
        const int columns = static_cast<int>(std::min<int64_t>(kPanelColumns, layer.out_features - column));
        store_tile(sums, count, layer.bias ? layer.bias + column : nullptr, columns, out + row * out_stride + column,
                   out_stride);
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
    Gemm<T, Out>{layer, prepared, x_stride, rows, out, out_stride}.run();
}

}  // namespace
}  // namespace mx

void mx_linear(const MxLinearCall* call) {
    mx::dispatch(call->dtype, [&](auto element) {
        using T = decltype(element);
        const T* x = static_cast<const T*>(call->x);
        if (call->out_is_fp32) {
            mx::linear(*call->layer, x, call->x_stride, call->rows, static_cast<float*>(call->out), call->out_stride);
        } else {
            mx::linear(*call->layer, x, call->x_stride, call->rows, static_cast<T*>(call->out), call->out_stride);
        }
    });
}
