// Linear layers: out[M, N] = x[M, K] * weight[N, K]^T + bias, for every format of packed weights.
//
//                    panel 0      panel 1      ...          a task = (row chunk, panel), taken dynamically
//                  +-----------+-----------+
//                  | F::kColumns           |
//                  +-----------+-----------+
//   row chunk 0    |  task 0   |  task 1   |   a chunk's rows stay in the cache while panels stream past
//   (<= 192 rows)  |           |           |
//                  +-----------+-----------+
//   row chunk 1    |           |           |   inside a task: tiles of up to 6 rows x F::kColumns columns
//                  +-----------+-----------+
//
// Few rows take several panels per task and read them as the memory streams them; if they are more than one tile, the
// tiles walk along K together. Otherwise, while a tile is computed, it prefetches its share of the panel this thread will
// probably need next. Deep layers are
// cut along K so that rows and panel fit the second-level cache together; the sums between two cuts wait as float32,
// which loses nothing, so a result does not depend on the cut, the chunk, the tile or the thread.
//
// A format F says how K is walked in steps and what a step is made of:
//
//   Left                      element of prepared activations; kLeftPerStep of them belong to a step
//   kColumns, kStepBytes      columns of a panel, and its bytes per step
//   kStepDepth                elements of K per step
//   kLinesPerStep             cache lines a step can prefetch
//   kStreamedRows             up to so many rows, weights come in as fast as memory gives them without prefetching
//   kPrefetchedRows           rows up to which prefetching pays for the loads it displaces
//   multiply_tile<R>          one tile over a range of steps
#pragma once

#include <algorithm>

#include "kernels.h"
#include "parallel.h"
#include "tile.h"

namespace mx {

constexpr int64_t kChunkRows = 192;
constexpr int64_t kWholeRows = 96;  // up to here one chunk holds all rows
constexpr int64_t kDepthCut = 4096;
constexpr int64_t kCacheLine = 64;
constexpr int64_t kRunBytes = 256 << 10;
constexpr int64_t kStreamedCutBytes = 4 << 10;  // what the first-level cache keeps for the next tile
constexpr int64_t kRunsPerThread = 4;
constexpr int64_t kSerialWeights = 1 << 19;   // layers of up to so many weights, which one core's cache holds, ...
constexpr int64_t kSerialProducts = 1 << 20;  // ... and so many multiplications stay on the calling thread

/// Lines of the next panel that one tile asks for, spread over its first steps.
struct PrefetchRange {
    const char* start = nullptr;
    int64_t lines = 0;
};

/// Rounds and stores `sums: [rows][sums_stride]` plus bias; columns past `columns` are not touched.
template <class Out>
void store_tile(const float* sums, int64_t sums_stride, int rows, const float* bias, int columns, Out* out,
                int64_t out_stride) {
    for_each_vector(columns, [&](int64_t column, auto lanes) {
        const Floats offset = bias ? load(bias + column, lanes) : Floats{};
        for (int r = 0; r < rows; ++r) {
            const Floats sum = load(sums + r * sums_stride + column);
            store(out + r * out_stride + column, bias ? sum + offset : sum, lanes);
        }
    });
}

template <class F, class Out>
struct Gemm {
    using Left = typename F::Left;

    const MxLinear& layer;
    const Left* x;
    int64_t x_stride;
    int64_t rows;
    Out* out;
    int64_t out_stride;

    int64_t panels() const { return divide_up(layer.out_features, F::kColumns); }
    int64_t steps() const { return divide_up(layer.in_features, F::kStepDepth); }

    void run() const {
        const int64_t chunk_rows = rows <= kWholeRows ? rows : kChunkRows;
        const int64_t chunks = divide_up(rows, chunk_rows);
        const int threads = Team::instance().size();
        const int64_t run = run_length(threads);
        parallel_tasks(chunks, divide_up(panels(), run), is_small(), [&](int64_t chunk, int64_t task) {
            const int64_t first = chunk * chunk_rows;
            const int64_t end = std::min((task + 1) * run, panels());
            for (int64_t panel = task * run; panel < end; ++panel) {
                run_task(first, std::min(chunk_rows, rows - first), panel, panel + threads);
            }
        });
    }

    /// Panels of one task. Streamed ones are taken in runs, so that memory is read in long pieces, but not in so long
    /// ones that a thread has to wait for another one's last.
    int64_t run_length(int threads) const {
        if (rows > F::kStreamedRows) return 1;
        const int64_t longest = std::max<int64_t>(1, panels() / (threads * kRunsPerThread));
        return std::clamp<int64_t>(kRunBytes / (steps() * F::kStepBytes), 1, longest);
    }

    bool is_small() const {
        const int64_t weights = layer.in_features * layer.out_features;
        return weights <= kSerialWeights && rows * weights <= kSerialProducts;
    }

    void run_task(int64_t first_row, int64_t task_rows, int64_t panel, int64_t next_panel) const {
        alignas(64) float sums[kChunkRows * F::kColumns];
        const int64_t depth = steps();
        const char* weights = static_cast<const char*>(layer.weights) + panel * depth * F::kStepBytes;
        const bool is_prefetching =
            task_rows > F::kStreamedRows && task_rows <= F::kPrefetchedRows && next_panel < panels();
        const char* next = is_prefetching ? weights + (next_panel - panel) * depth * F::kStepBytes : nullptr;
        const RowTiles tiles(task_rows);
        const int64_t cut = cut_length(task_rows, tiles.count);
        for (int64_t step = 0; step < depth; step += cut) {
            const int64_t length = std::min(cut, depth - step);
            for (int64_t tile = 0; tile < tiles.count; ++tile) {
                const int64_t row = tiles.first_row(tile);
                float* tile_sums = sums + (cut < depth ? row * F::kColumns : 0);
                multiply(tiles.rows(tile), x + (first_row + row) * x_stride + step * F::kLeftPerStep,
                         weights + step * F::kStepBytes, length, tile_sums, step > 0,
                         share(next, step, length, tile, tiles.count));
                if (step + length == depth) store_rows(tile_sums, first_row + row, tiles.rows(tile), panel);
            }
        }
    }

    /// Steps after which the next tile takes over.
    int64_t cut_length(int64_t task_rows, int64_t tiles) const {
        if (tiles == 1) return steps();
        return task_rows <= F::kStreamedRows ? kStreamedCutBytes / F::kStepBytes : kDepthCut / F::kStepDepth;
    }

    void multiply(int tile_rows, const Left* left, const char* panel, int64_t length, float* sums, bool is_continued,
                  PrefetchRange next) const {
        using Tile = void (*)(const Left*, int64_t, const char*, int64_t, float*, bool, PrefetchRange);
        static constexpr Tile kTiles[kMaxTileRows + 1] = {
            nullptr,
            F::template multiply_tile<1>, F::template multiply_tile<2>, F::template multiply_tile<3>,
            F::template multiply_tile<4>, F::template multiply_tile<5>, F::template multiply_tile<6>};
        kTiles[tile_rows](left, x_stride, panel, length, sums, is_continued, next);
    }

    /// The part of the next panel's same cut of K that this tile prefetches.
    static PrefetchRange share(const char* next, int64_t step, int64_t length, int64_t tile, int64_t tiles) {
        if (!next) return {};
        const int64_t total = length * F::kStepBytes / kCacheLine;
        const int64_t lines = std::min(divide_up(total, tiles), length * F::kLinesPerStep);
        const int64_t first = std::min(tile * lines, total);
        return {next + step * F::kStepBytes + first * kCacheLine, std::min(lines, total - first)};
    }

    void store_rows(const float* sums, int64_t row, int count, int64_t panel) const {
        const int64_t column = panel * F::kColumns;
        const int columns = static_cast<int>(std::min<int64_t>(F::kColumns, layer.out_features - column));
        store_tile(sums, F::kColumns, count, layer.bias ? layer.bias + column : nullptr, columns,
                   out + row * out_stride + column, out_stride);
    }
};

}  // namespace mx
