// Attention rows over a KV cache in the type of the activations (kv_plain.h); drawing in attention.cpp.
#pragma once

#include "attention_rows.h"
#include "kv_plain.h"

namespace mx {

template <class T>
class PlainAttention : public AttentionRows {
public:
    using Format = PlainKv<T>;

    PlainAttention(const MxGeometry& geometry, int rows) : AttentionRows(geometry, rows) {}

    /// Takes the query of row `r` at `position`.
    void load_row(int r, const T* query, int32_t position) {
        start_row(r, position);
        Left<T>* to = queries_ + r * head_dim_;
        for_each_vector(head_dim_, [&](int64_t d, auto lanes) { store(to + d, load(query + d, lanes), lanes); });
    }

    void add_chunk(const Chunk& chunk, const Chunk* next) {
        for_row_tiles(rows_, [&](auto rows, int row, bool is_first) {
            score<decltype(rows)::value>(row, chunk, is_first ? next : nullptr);
        });
        for (int r = 0; r < rows_; ++r) {
            Left<T>* probabilities = probabilities_ + r * kChunkKeys;
            softmax_row(r, chunk.first_key, [&](int i, Floats vector) { store(probabilities + i, vector); });
        }
        add_values(chunk, next);
    }

private:
    static constexpr int kDepth = Product<T>::kDepth;
    static constexpr int kHalfStepElements = kDepth * (kMaxHeadDim + kWidestLanes);

    /// Consecutive value steps (depth tokens each) in memory, and where their probabilities start.
    struct ValueRun {
        const T* values;
        int first_step;
        int steps;
        const T* next;  // the same place in the next chunk, to prefetch, or null
    };

    static const T* elements(const char* group) { return reinterpret_cast<const T*>(group); }

    /// scores[R][64] = q k^T * scale for rows `row ..`.
    template <int R>
    void score(int row, const Chunk& chunk, const Chunk* next) {
        constexpr int kVectors = tile_vectors(R);
        constexpr int kVectorsPerGroup = kGroupTokens / kLanes;
        const Left<T>* queries = queries_ + row * head_dim_;
        const int64_t steps = head_dim_ / kDepth;
        for (int column = 0; column < kChunkKeys; column += kVectors * kLanes) {
            const T* right[kVectors];
            const T* prefetched[kVectors];
            for (int v = 0; v < kVectors; ++v) {
                const int vector = column / kLanes + v;
                const int offset = vector % kVectorsPerGroup * kRightElements<T>;
                right[v] = elements(chunk.keys[vector / kVectorsPerGroup]) + offset;
                prefetched[v] = next ? elements(next->keys[vector / kVectorsPerGroup]) + offset : nullptr;
            }
            Floats sum[R][kVectors] = {};
            const auto right_at = [&right](int64_t k, int v) { return right[v] + k * (kGroupTokens * kDepth); };
            const auto prefetch = [&prefetched](int64_t k) MX_ALWAYS_INLINE {
                for (int v = 0; v < kVectors; ++v) {
                    __builtin_prefetch(prefetched[v] + k * (kGroupTokens * kDepth), 0, 2);
                }
            };
            if (next) {
                accumulate<T>(sum, queries, head_dim_, {0, steps}, right_at, prefetch);
            } else {
                accumulate<T>(sum, queries, head_dim_, {0, steps}, right_at, no_prefetch);
            }
            for (int r = 0; r < R; ++r) {
                float* scores = scores_of(row + r) + column;
                for (int v = 0; v < kVectors; ++v) store(scores + v * kLanes, sum[r][v] * scale_);
            }
        }
    }

    void add_values(const Chunk& chunk, const Chunk* next) {
        alignas(64) T half_steps[2 * kHalfStepElements];
        ValueRun runs[kChunkGroups + 2];
        const int count = split_values(chunk, next, half_steps, runs);
        for_row_tiles(rows_, [&](auto rows, int row, bool is_first) {
            constexpr int R = decltype(rows)::value;
            constexpr int kVectors = tile_vectors(R);
            int d = 0;
            for (; d + kVectors * kLanes <= padded_dim_; d += kVectors * kLanes) {
                add_columns<R, kVectors>(row, d, runs, count, is_first);
            }
            for (; d < padded_dim_; d += kLanes) add_columns<R, 1>(row, d, runs, count, is_first);
        });
    }

    /// sums[R][V * kLanes] at dimension `d` = sums * rescale + P v.
    template <int R, int V>
    void add_columns(int row, int d, const ValueRun* runs, int count, bool may_prefetch) {
        Floats sum[R][V];
        for (int r = 0; r < R; ++r) {
            const Floats factor = splat(rescale(row + r));
            for (int v = 0; v < V; ++v) sum[r][v] = load(sums_of(row + r) + d + v * kLanes) * factor;
        }
        for (int i = 0; i < count; ++i) {
            const ValueRun& run = runs[i];
            const Left<T>* left = probabilities_ + row * kChunkKeys + run.first_step * kDepth;
            const T* right = run.values + d * kDepth;
            const int64_t stride = static_cast<int64_t>(head_dim_) * kDepth;
            const auto right_at = [right, stride](int64_t k, int v) {
                return right + k * stride + v * kRightElements<T>;
            };
            if (may_prefetch && run.next) {
                // Front to back over all columns together, not column by column, as memory likes it.
                const T* next = run.next + static_cast<int64_t>(d) * kDepth * run.steps;
                const auto prefetch = [next](int64_t k) MX_ALWAYS_INLINE {
                    for (int v = 0; v < V; ++v) __builtin_prefetch(next + (k * V + v) * kRightElements<T>, 0, 2);
                };
                accumulate<T>(sum, left, kChunkKeys, {0, run.steps}, right_at, prefetch);
            } else {
                accumulate<T>(sum, left, kChunkKeys, {0, run.steps}, right_at, no_prefetch);
            }
        }
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < V; ++v) store(sums_of(row + r) + d + v * kLanes, sum[r][v]);
        }
    }

    /// Cuts the chunk's visible values into runs, in ascending order. Values that nobody sees are not touched, because
    /// 0 times whatever an unused slot holds may be NaN; where only one token of a step is visible, the step is copied
    /// to `half_steps` with zeros for the other token.
    int split_values(const Chunk& chunk, const Chunk* next, T* half_steps, ValueRun* runs) const {
        int count = 0;
        for (int g = 0; g < kChunkGroups; ++g) {
            const int32_t first = chunk.first_key + g * kGroupTokens;
            const int begin = std::clamp(chunk.visible.begin - first, 0, kGroupTokens);
            const int end = std::clamp(chunk.visible.end - first, 0, kGroupTokens);
            if (begin >= end) continue;
            const T* values = elements(chunk.values[g]);
            const int first_step = g * (kGroupTokens / kDepth);
            const int whole_begin = (begin + kDepth - 1) / kDepth;
            const int whole_end = end / kDepth;
            const auto add_half = [&](int step, int token) {
                runs[count++] = {copy_half_step(values, step, token, half_steps), first_step + step, 1, nullptr};
                half_steps += kHalfStepElements;
            };
            if (begin % kDepth) add_half(begin / kDepth, 1);
            if (whole_begin < whole_end) {
                const int64_t offset = static_cast<int64_t>(whole_begin) * head_dim_ * kDepth;
                const int steps = whole_end - whole_begin;
                runs[count++] = {values + offset, first_step + whole_begin, steps,
                                 next ? elements(next->values[g]) + offset : nullptr};
            }
            if (end % kDepth) add_half(whole_end, 0);
        }
        return count;
    }

    /// Copies one step of a value group, keeping only token `kept` of its `kDepth` tokens.
    const T* copy_half_step(const T* group, int step, int kept, T* to) const {
        const T* from = group + static_cast<int64_t>(step) * head_dim_ * kDepth;
        std::fill_n(to, padded_dim_ * kDepth, T{});
        for (int d = 0; d < head_dim_; ++d) to[d * kDepth + kept] = from[d * kDepth + kept];
        return to;
    }

    alignas(64) Left<T> queries_[kAttentionRows * kMaxHeadDim];
    alignas(64) Left<T> probabilities_[kAttentionRows * kChunkKeys];
};

}  // namespace mx
