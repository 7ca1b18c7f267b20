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
constexpr int64_t kTaskRows = 48;
constexpr int64_t kTaskWeights = 1 << 14;     // of one task: some microseconds for one row
constexpr int64_t kSerialProducts = 1 << 16;  // so many multiplications in all stay on the calling thread

/// The rows of a range whose adapter has something to do in this layer.
struct Span {
    const MxAdapter* adapter;
    int64_t first_row;
    int64_t first_sum;  // where the sums of its rows begin
    float scale;
};

/// Some rows of a span with some ranks (shrink) or some panels of a part (expand).
struct Task {
    const Span* span;
    const MxAdapterPart* part;
    int64_t row;  // of the span
    int64_t rows;
    int64_t first;
    int64_t count;
};

/// What there is to do in one call.
class Plan {
public:
    int64_t num_sums = 0;
    std::vector<Task> shrinks;
    std::vector<Task> expands;
    bool is_small = false;

    void make(const MxAdapterRanges& ranges, const MxAdapter* const* slots) {
        num_sums = 0;
        spans_.clear();
        shrinks.clear();
        expands.clear();
        spans_.reserve(static_cast<size_t>(ranges.count));  // tasks point to spans
        int64_t products = 0;
        for (int64_t i = 0; i < ranges.count; ++i) {
            const MxAdapterRange& range = ranges.ranges[i];
            const MxAdapter* adapter = slots[range.slot];
            const int64_t rows = range.end - range.start;
            if (!adapter || rows <= 0) continue;
            spans_.push_back({adapter, range.start, num_sums, range.scale});
            num_sums += rows * adapter->ranks;
            products += rows * add_span(spans_.back(), rows);
        }
        is_small = products <= kSerialProducts;
    }

private:
    /// Returns how many multiplications a row takes.
    int64_t add_span(const Span& span, int64_t rows) {
        const MxAdapter& adapter = *span.adapter;
        add_tasks(shrinks, span, nullptr, rows, adapter.ranks, adapter.in_features, kDotRanks);
        int64_t products = adapter.ranks * adapter.in_features;
        for (int64_t i = 0; i < adapter.num_parts; ++i) {
            const MxAdapterPart& part = adapter.parts[i];
            // What a column costs besides the products is as much as some of them.
            add_tasks(expands, span, &part, rows, panel_count(part.outputs), kPanelColumns * (part.ranks + 8), 1);
            products += part.ranks * part.outputs;
        }
        return products;
    }

    static void add_tasks(std::vector<Task>& tasks, const Span& span, const MxAdapterPart* part, int64_t rows,
                          int64_t pieces, int64_t piece_weights, int64_t granularity) {
        if (pieces == 0) return;
        const int64_t most = std::max<int64_t>(1, kTaskWeights / (piece_weights * granularity)) * granularity;
        for (int64_t row = 0; row < rows; row += kTaskRows) {
            for (int64_t first = 0; first < pieces; first += most) {
                tasks.push_back({&span, part, row, std::min(kTaskRows, rows - row), first,
                                 std::min(most, pieces - first)});
            }
        }
    }

    std::vector<Span> spans_;
};

/// `sum[r][j]` += products of row r of x and row j of A along `steps` vectors from `first` on.
template <class T, int R>
MX_INLINE void add_dot_products(Floats (&sum)[R][kDotRanks], const T* x, int64_t x_stride, const T* const* a,
                                int64_t first, int64_t steps) {
    using P = Product<T>;
    for (int64_t step = 0; step < steps; ++step) {
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
void shrink_tile(const MxAdapter& adapter, const T* x, int64_t x_stride, int64_t first, int64_t count, Left<T>* sums) {
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
        add_dot_products<T, R>(sum, x, x_stride, a, 0, whole / kStep);
        if (rest) add_dot_products<T, R>(sum, tail[0], kStep, a, whole, 1);
        for (int r = 0; r < R; ++r) {
            for (int64_t j = 0; j < ranks; ++j) {
                sums[r * adapter.ranks + rank + j] = rounded_sum<Left<T>>(horizontal_sum(sum[r][j]));
            }
        }
    }
}

/// What happens to an output besides the product.
struct Finish {
    float scale;               // on the product
    float adapter_scale;       // on gain and bias
    const float* gain_change;  // or null
    const float* bias;         // or null

    template <class Out, class Lanes>
    MX_INLINE void apply(Out* out, int64_t column, Floats sum, Lanes lanes) const {
        Floats value = load(out + column, lanes);
        if (gain_change) value = value * fma(splat(adapter_scale), load(gain_change + column, lanes), splat(1.0f));
        value = fma(splat(scale), sum, value);
        if (bias) value = fma(splat(adapter_scale), load(bias + column, lanes), value);
        store(out + column, value, lanes);
    }
};

/// R rows of one panel, of which the first `columns` are written.
template <class T, class Out, int R>
void expand_tile(const Left<T>* sums, int64_t sums_stride, const T* panel, int64_t ranks, int64_t columns,
                 const Finish& finish, Out* out, int64_t out_stride) {
    constexpr int kVectors = tile_vectors(R);
    constexpr int kDepth = kPackDepth<T>;
    for (int64_t start = 0; start < columns; start += kVectors * kLanes) {
        Floats sum[R][kVectors] = {};
        const T* first = panel + start * kDepth;
        const auto right_at = [first](int64_t k, int v) {
            return first + k * kPanelColumns * kDepth + v * kRightElements<T>;
        };
        accumulate<T>(sum, sums, sums_stride, {0, divide_up(ranks, kDepth)}, right_at, no_prefetch);
        for (int v = 0; v < kVectors; ++v) {
            const int64_t column = start + v * kLanes;
            if (column >= columns) break;
            for (int r = 0; r < R; ++r) {
                if (column + kLanes <= columns) {
                    finish.apply(out + r * out_stride, column, sum[r][v], AllLanes{});
                } else {
                    finish.apply(out + r * out_stride, column, sum[r][v], SomeLanes{columns - column});
                }
            }
        }
    }
}

template <class T, class Out>
struct Adapt {
    const MxAdaptCall& call;
    Left<T>* sums;

    void run(const Plan& plan) const {
        run_tasks(plan.shrinks, plan.is_small, [&](const Task& task) { shrink(task); });
        run_tasks(plan.expands, plan.is_small, [&](const Task& task) { expand(task); });
    }

private:
    template <class Body>
    static void run_tasks(const std::vector<Task>& tasks, bool is_serial, const Body& body) {
        parallel_tasks(static_cast<int64_t>(tasks.size()), 1, is_serial,
                       [&](int64_t task, int64_t) { body(tasks[static_cast<size_t>(task)]); });
    }

    Left<T>* sums_of(const Task& task, int64_t row) const {
        return sums + task.span->first_sum + row * task.span->adapter->ranks;
    }

    void shrink(const Task& task) const {
        using Tile = void (*)(const MxAdapter&, const T*, int64_t, int64_t, int64_t, Left<T>*);
        static constexpr Tile kTiles[] = {nullptr, shrink_tile<T, 1>, shrink_tile<T, 2>,
                                          shrink_tile<T, std::min(3, kDotRows)>, shrink_tile<T, kDotRows>};
        for (int64_t row = task.row; row < task.row + task.rows; row += kDotRows) {
            const T* x = static_cast<const T*>(call.x) + (task.span->first_row + row) * call.x_stride;
            const int64_t rows = std::min<int64_t>(kDotRows, task.row + task.rows - row);
            kTiles[rows](*task.span->adapter, x, call.x_stride, task.first, task.count, sums_of(task, row));
        }
    }

    void expand(const Task& task) const {
        using Tile = void (*)(const Left<T>*, int64_t, const T*, int64_t, int64_t, const Finish&, Out*, int64_t);
        static constexpr Tile kTiles[kMaxTileRows + 1] = {
            nullptr, expand_tile<T, Out, 1>, expand_tile<T, Out, 2>, expand_tile<T, Out, 3>,
            expand_tile<T, Out, 4>, expand_tile<T, Out, 5>, expand_tile<T, Out, 6>};
        const MxAdapter& adapter = *task.span->adapter;
        const MxAdapterPart& part = *task.part;
        const RowTiles tiles(task.rows);
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
            const int64_t row = task.row + tiles.first_row(tile);
            Out* out = static_cast<Out*>(call.out) + (task.span->first_row + row) * call.out_stride;
            for (int64_t panel = task.first; panel < task.first + task.count; ++panel) {
                const int64_t column = panel * kPanelColumns, output = part.first_output + column;
                const Finish finish{part.scaling * task.span->scale, task.span->scale,
                                    adapter.gain_change ? adapter.gain_change + output : nullptr,
                                    adapter.bias ? adapter.bias + output : nullptr};
                kTiles[tiles.rows(tile)](sums_of(task, row) + part.first_rank, adapter.ranks,
                                         static_cast<const T*>(part.b) + panel * panel_elements<T>(part.ranks),
                                         part.ranks, std::min<int64_t>(kPanelColumns, part.outputs - column), finish,
                                         out + output, call.out_stride);
            }
        }
    }
};

}  // namespace
}  // namespace mx

void mx_adapt(const MxAdaptCall* call) {
    static thread_local mx::Plan plan;
    static thread_local mx::Scratch scratch;
    plan.make(*call->ranges, call->slots);
    if (plan.expands.empty()) return;
    mx::dispatch_output(call->dtype, call->out_is_fp32, [&](auto element, auto output) {
        using T = decltype(element);
        mx::Adapt<T, decltype(output)>{*call, scratch.get<mx::Left<T>>(plan.num_sums)}.run(plan);
    });
}
