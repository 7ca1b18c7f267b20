// Adapters (LoRA): adds to a linear layer's output, for the rows of each adapter, what that adapter does to them.
//
//   rows          x [M, K]              sums [rows, ranks]             out [M, N]
//   range 0  +--------------+  shrink  +---+  expand  +--------+--------+----+
//            |              | -------> |   | -------> | part 0 | part 1 | .. |   out = gain * out + scale * sums * B
//   range 1  +--------------+          +---+          +--------+--------+----+                            + bias
//            |              |          |   |          |        |        |    |
//            +--------------+          +---+          +--------+--------+----+
//
// Shrinking multiplies along K, with vectors of both operands: A lies row by row, so any rank is as good as another.
// Expanding multiplies panels of B (panels.h) with the tile of a linear layer; between the two, sums are rounded to what
// that tile broadcasts: bf16 where there are bf16 products, as every other activation of such a model.
//
// Tasks of both are (range, some rows, some weights), so that one long prompt and many single rows use all cores alike.
// A sum adds its products in an order that depends on K or on the rank only; no result depends on how tasks were cut.

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "dispatch.h"
#include "panels.h"
#include "parallel.h"
#include "scratch.h"
#include "tile.h"

namespace mx {
namespace {

constexpr int kDotRanks = 4;
constexpr int kDotRows = kVectorRegisters == 32 ? 4 : 2;  // kDotRows x kDotRanks sums stay in registers
constexpr int64_t kCacheLine = 64;
constexpr int64_t kTaskRows = 48;
constexpr int64_t kTaskWeights = 1 << 14;     // of one task: some microseconds for one row
constexpr int64_t kSerialProducts = 1 << 16;  // so many multiplications in all stay on the calling thread

/// The rows of a range whose adapter has something to do in this layer.
struct Span {
    const MxAdapter* adapter;
    int64_t first_row;
    int64_t rows;
    int64_t first_sum;  // where the sums of its rows begin
    float scale;
};

/// Some rows of a span with some ranks (shrink) or some panels of a part (expand).
struct Task {
    const Span* span;
    const MxAdapterPart* part;  // null: shrink
    int64_t row;  // of the span
    int64_t rows;
    int64_t first;
    int64_t count;
};

/// What there is to do in one call: first all shrinks, then all expands.
class Plan {
public:
    std::vector<Task> tasks;
    int64_t num_shrinks = 0;
    int64_t num_sums = 0;
    bool is_small = false;

    void make(const MxAdapterRanges& ranges, const MxAdapter* const* slots) {
        tasks.clear();
        spans_.clear();
        spans_.reserve(static_cast<size_t>(ranges.count));  // tasks point to spans
        num_sums = 0;
        int64_t products = 0;
        for (int64_t i = 0; i < ranges.count; ++i) {
            const MxAdapterRange& range = ranges.ranges[i];
            const MxAdapter* adapter = slots[range.slot];
            const int64_t rows = range.end - range.start;
            if (!adapter || rows <= 0) continue;
            spans_.push_back({adapter, range.start, rows, num_sums, range.scale});
            num_sums += rows * adapter->ranks;
            products += rows * adapter->ranks * adapter->in_features;
            add_tasks(spans_.back(), nullptr, adapter->ranks, adapter->in_features, kDotRanks);
        }
        num_shrinks = static_cast<int64_t>(tasks.size());
        for (const Span& span : spans_) {
            for (int64_t i = 0; i < span.adapter->num_parts; ++i) {
                const MxAdapterPart& part = span.adapter->parts[i];
                const int64_t work = part.ranks + 8;  // what else a column costs is as much as some products
                products += span.rows * work * part.outputs;
                add_tasks(span, &part, panel_count(part.outputs), kPanelColumns * work, 1);
            }
        }
        is_small = products <= kSerialProducts;
    }

private:
    /// Cuts `pieces`, of so many weights each, at multiples of `granularity`.
    void add_tasks(const Span& span, const MxAdapterPart* part, int64_t pieces, int64_t piece_weights,
                   int64_t granularity) {
        if (pieces == 0) return;
        const int64_t most = std::max<int64_t>(1, kTaskWeights / (piece_weights * granularity)) * granularity;
        for (int64_t row = 0; row < span.rows; row += kTaskRows) {
            const int64_t rows = std::min(kTaskRows, span.rows - row);
            for (int64_t first = 0; first < pieces; first += most) {
                tasks.push_back({&span, part, row, rows, first, std::min(most, pieces - first)});
            }
        }
    }

    std::vector<Span> spans_;
};

/// The weights of a task and, behind them, those of the next one of this thread: what one row reads front to back.
///
/// The four rows of A that are multiplied together are too much for the machine's own prefetching; B, which is read
/// line by line, is not: asking for it too made expanding slower (docs/log.md).
struct Stream {
    const char* start;
    int64_t bytes;
    const char* next;

    /// What is read kAhead bytes later than `now`.
    const char* after(const char* now) const {
        constexpr int64_t kAhead = 16 << 10;
        const int64_t place = now - start + kAhead;
        return place < bytes ? start + place : next + (place - bytes);
    }
};

template <int kLines>
MX_INLINE void prefetch_lines(const char* first) {
#pragma GCC unroll 8
    for (int line = 0; line < kLines; ++line) __builtin_prefetch(first + line * kCacheLine, 0, 2);
}

/// `sum[r][j]` += products of row r of x and row j of A along `steps` vectors from `first` on.
template <class T, int R, class Prefetch>
MX_INLINE void add_dot_products(Floats (&sum)[R][kDotRanks], const T* x, int64_t x_stride, const T* const* a,
                                int64_t first, int64_t steps, Prefetch prefetch) {
    using P = Product<T>;
    for (int64_t step = 0; step < steps; ++step) {
        prefetch(step);
#pragma GCC unroll 2
        for (int substep = 0; substep < P::kSubsteps; ++substep) {
            typename P::Right weights[kDotRanks];
#pragma GCC unroll 4
            for (int j = 0; j < kDotRanks; ++j) {
                weights[j] = P::right(a[j] + first + step * kRightElements<T>, substep);
            }
#pragma GCC unroll 4
            for (int r = 0; r < R; ++r) {
                const typename P::Right row = P::right(x + r * x_stride + step * kRightElements<T>, substep);
#pragma GCC unroll 4
                for (int j = 0; j < kDotRanks; ++j) sum[r][j] = P::add(sum[r][j], row, weights[j]);
            }
        }
    }
}

template <class Sum>
MX_INLINE Sum rounded_sum(float value) {
    if constexpr (std::is_same_v<Sum, Bf16>) {
        return float_to_bf16(value);
    } else {
        return value;
    }
}

/// `sums[r][rank]` of R rows for the ranks `first .. first + count - 1`.
template <class T, int R>
void shrink_tile(const MxAdapter& adapter, const T* x, int64_t x_stride, int64_t first, int64_t count, Left<T>* sums,
                 const Stream& stream) {
    constexpr int kStepLines = kDotRanks * kRightElements<T> * sizeof(T) / kCacheLine;
    constexpr int64_t kStep = kRightElements<T>;
    const int64_t whole = adapter.in_features / kStep * kStep, rest = adapter.in_features - whole;
    T tail[R][kStep] = {};
    if (rest) {
        for (int r = 0; r < R; ++r) {
            std::memcpy(tail[r], x + r * x_stride + whole, sizeof(T) * static_cast<size_t>(rest));
        }
    }
    for (int64_t rank = first; rank < first + count; rank += kDotRanks) {
        const int64_t ranks = std::min<int64_t>(kDotRanks, first + count - rank);
        const T* a[kDotRanks];
        for (int j = 0; j < kDotRanks; ++j) {  // past the last one, the last one again
            a[j] = static_cast<const T*>(adapter.a) + (rank + std::min<int64_t>(j, ranks - 1)) * adapter.a_stride;
        }
        Floats sum[R][kDotRanks] = {};
        const char* soon = stream.after(reinterpret_cast<const char*>(a[0]));
        const auto prefetch = [soon](int64_t step) MX_ALWAYS_INLINE {
            if (R == 1) prefetch_lines<kStepLines>(soon + step * kStepLines * kCacheLine);
        };
        add_dot_products<T, R>(sum, x, x_stride, a, 0, whole / kStep, prefetch);
        if (rest) add_dot_products<T, R>(sum, tail[0], kStep, a, whole, 1, no_prefetch);
        for (int r = 0; r < R; ++r) {
            for (int64_t j = 0; j < ranks; ++j) {
                sums[r * adapter.ranks + rank + j] = rounded_sum<Left<T>>(horizontal_sum(sum[r][j]));
            }
        }
    }
}

/// The outputs that one task writes.
template <class T, class Out>
struct Expansion {
    const Left<T>* sums;  // of the first row
    int64_t sums_stride;
    const T* panels;
    int64_t ranks;
    int64_t columns;
    float scale;               // on the product
    float adapter_scale;       // on gain and bias
    const float* gain_change;  // or null
    const float* bias;         // or null
    Out* out;
    int64_t out_stride;

    template <int R>
    void write_rows(int64_t row) const {
        constexpr int kVectors = tile_vectors(R);
        constexpr int kWidth = kVectors * kLanes;
        constexpr int kDepth = kPackDepth<T>;
        const Left<T>* left = sums + row * sums_stride;
        Out* first = out + row * out_stride;
        for (int64_t column = 0; column < columns; column += kWidth) {
            const T* panel = panels + column / kPanelColumns * panel_elements<T>(ranks) + column % kPanelColumns * kDepth;
            const auto right_at = [panel](int64_t k, int v) {
                return panel + k * kPanelColumns * kDepth + v * kRightElements<T>;
            };
            Floats sum[R][kVectors] = {};
            accumulate<T>(sum, left, sums_stride, {0, divide_up(ranks, kDepth)}, right_at, no_prefetch);
            if (column + kWidth <= columns) {
                for (int r = 0; r < R; ++r) {
                    for (int v = 0; v < kVectors; ++v) {
                        finish(first + r * out_stride, column + v * kLanes, sum[r][v], AllLanes{});
                    }
                }
            } else {
                finish_last<R>(first, column, sum);
            }
        }
    }

private:
    /// The last columns, which do not fill the vectors of a tile.
    template <int R, int V>
    void finish_last(Out* first, int64_t column, const Floats (&sum)[R][V]) const {
        for (int r = 0; r < R; ++r) {
            float row[V * kLanes];
            for (int v = 0; v < V; ++v) store(row + v * kLanes, sum[r][v]);
            for_each_vector(columns - column, [&](int64_t i, auto lanes) {
                finish(first + r * out_stride, column + i, load(row + i), lanes);
            });
        }
    }

    template <class Lanes>
    MX_INLINE void finish(Out* row, int64_t column, Floats sum, Lanes lanes) const {
        Floats value = load(row + column, lanes);
        if (gain_change) value = value * fma(splat(adapter_scale), load(gain_change + column, lanes), splat(1.0f));
        value = fma(splat(scale), sum, value);
        if (bias) value = fma(splat(adapter_scale), load(bias + column, lanes), value);
        store(row + column, value, lanes);
    }
};

template <class T, class Out>
struct Adapt {
    const MxAdaptCall& call;
    const Plan& plan;
    Left<T>* sums;

    void run() const {
        const int64_t num_tasks = static_cast<int64_t>(plan.tasks.size());
        parallel_tasks(plan.num_shrinks, 1, plan.is_small, [&](int64_t index, int64_t) { shrink(index); });
        parallel_tasks(num_tasks - plan.num_shrinks, 1, plan.is_small,
                       [&](int64_t index, int64_t) { expand(task_at(plan.num_shrinks + index)); });
    }

private:
    const Task& task_at(int64_t index) const { return plan.tasks[static_cast<size_t>(index)]; }

    /// Where the weights of a task's `piece` begin.
    static const char* weights(const Task& task, int64_t piece) {
        const MxAdapter& adapter = *task.span->adapter;
        const void* all = task.part ? task.part->b : adapter.a;
        const int64_t length = task.part ? panel_elements<T>(task.part->ranks) : adapter.a_stride;
        return static_cast<const char*>(all) + (task.first + piece) * length * static_cast<int64_t>(sizeof(T));
    }

    Left<T>* sums_of(const Task& task, int64_t row) const {
        return sums + task.span->first_sum + row * task.span->adapter->ranks;
    }

    void shrink(int64_t index) const {
        using Tile = void (*)(const MxAdapter&, const T*, int64_t, int64_t, int64_t, Left<T>*, const Stream&);
        static constexpr Tile kTiles[] = {nullptr, shrink_tile<T, 1>, shrink_tile<T, 2>,
                                          shrink_tile<T, std::min(3, kDotRows)>, shrink_tile<T, kDotRows>};
        const Task& task = task_at(index);
        const int64_t next = index + (plan.is_small ? 1 : Team::instance().size());
        const char* start = weights(task, 0);
        const bool is_last = next >= static_cast<int64_t>(plan.tasks.size());
        const Stream stream{start, weights(task, task.count) - start, is_last ? start : weights(task_at(next), 0)};
        for (int64_t row = task.row; row < task.row + task.rows; row += kDotRows) {
            const T* x = static_cast<const T*>(call.x) + (task.span->first_row + row) * call.x_stride;
            const int64_t rows = std::min<int64_t>(kDotRows, task.row + task.rows - row);
            kTiles[rows](*task.span->adapter, x, call.x_stride, task.first, task.count, sums_of(task, row), stream);
        }
    }

    void expand(const Task& task) const {
        using Tile = void (Expansion<T, Out>::*)(int64_t) const;
        using E = Expansion<T, Out>;
        static constexpr Tile kTiles[kMaxTileRows + 1] = {
            nullptr, &E::template write_rows<1>, &E::template write_rows<2>, &E::template write_rows<3>,
            &E::template write_rows<4>, &E::template write_rows<5>, &E::template write_rows<6>};
        const MxAdapter& adapter = *task.span->adapter;
        const MxAdapterPart& part = *task.part;
        const int64_t column = task.first * kPanelColumns, output = part.first_output + column;
        const E expansion{sums_of(task, task.row) + part.first_rank,
                          adapter.ranks,
                          reinterpret_cast<const T*>(weights(task, 0)),
                          part.ranks,
                          std::min(task.count * kPanelColumns, part.outputs - column),
                          part.scaling * task.span->scale,
                          task.span->scale,
                          adapter.gain_change ? adapter.gain_change + output : nullptr,
                          adapter.bias ? adapter.bias + output : nullptr,
                          static_cast<Out*>(call.out) + (task.span->first_row + task.row) * call.out_stride + output,
                          call.out_stride};
        const RowTiles tiles(task.rows);
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
            (expansion.*kTiles[tiles.rows(tile)])(tiles.first_row(tile));
        }
    }
};

}  // namespace
}  // namespace mx

void mx_adapt(const MxAdaptCall* call) {
    static thread_local mx::Plan plan;
    static thread_local mx::Scratch scratch;
    plan.make(*call->ranges, call->slots);
    if (plan.tasks.empty()) return;
    mx::dispatch_output(call->dtype, call->out_is_fp32, [&](auto element, auto output) {
        using T = decltype(element);
        mx::Adapt<T, decltype(output)>{*call, plan, scratch.get<mx::Left<T>>(plan.num_sums)}.run();
    });
}
