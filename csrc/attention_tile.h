// The state of one attention work item: up to 48 query rows and their running softmax (drawing in attention.cpp).
#pragma once

#include <algorithm>
#include <limits>
#include <type_traits>

#include "kv_layout.h"
#include "tile.h"

namespace mx {

constexpr int kAttentionRows = 48;
constexpr int kMaxHeadDim = 512;
constexpr int kChunkKeys = 64;
constexpr int kChunkGroups = kChunkKeys / kGroupTokens;
constexpr int kWidestLanes = 16;  // value rows are read and summed in vectors up to this wide

/// Keys `begin .. end - 1`.
struct KeyRange {
    int32_t begin;
    int32_t end;
};

/// 64 consecutive keys of a request, in four groups anywhere in the cache.
template <class T>
struct Chunk {
    int32_t first_key;
    KeyRange visible;  // keys of the chunk that some row of the tile sees
    const T* keys[kChunkGroups];
    const T* values[kChunkGroups];
};

/// Consecutive value steps (depth tokens each) in memory, and where their probabilities start.
template <class T>
struct ValueRun {
    const T* values;
    int first_step;
    int steps;
    const T* next;  // the same place in the next chunk, to prefetch, or null
};

template <class T>
class AttentionTile {
public:
    AttentionTile(int head_dim, float scale, int rows)
        : head_dim_(head_dim),
          padded_dim_((head_dim + kWidestLanes - 1) / kWidestLanes * kWidestLanes),
          scale_(scale),
          rows_(rows) {}

    /// Takes the query of row `r` at `position`; a `window` of 0 sees everything before it.
    void load_row(int r, const T* query, int32_t position, int32_t window) {
        convert(query, queries_ + r * head_dim_, head_dim_);
        std::fill_n(sums_ + r * padded_dim_, padded_dim_, 0.0f);
        visible_[r] = {window > 0 ? std::max(0, position - window + 1) : 0, position + 1};
        maximum_[r] = kNothingSeen;
        total_[r] = 0.0f;
    }

    /// Rows come in the order of their positions, so the first one sees the earliest key.
    int32_t first_visible_key() const { return visible_[0].begin; }

    void add_chunk(const Chunk<T>& chunk, const Chunk<T>* next) {
        const RowTiles tiles(rows_);
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
            const Chunk<T>* prefetch = tile == 0 ? next : nullptr;
            for_rows(tiles.rows(tile), [&](auto rows) {
                score<decltype(rows)::value>(static_cast<int>(tiles.first_row(tile)), chunk, prefetch);
            });
        }
        for (int r = 0; r < rows_; ++r) softmax_row(r, chunk.first_key);
        add_values(chunk, next);
    }

    void store_row(int r, T* out) const {
        const Floats inverse = splat(1.0f / total_[r]);
        const float* sums = sums_ + r * padded_dim_;
        for_each_vector(head_dim_, [&](int64_t d, auto lanes) {
            // + 0: a sum that underflowed to -0 must not tell whether masked keys, each adding +0, came after it.
            store(out + d, load(sums + d) * inverse + 0.0f, lanes);
        });
    }

private:
    static constexpr int kDepth = Product<T>::kDepth;
    static constexpr float kNothingSeen = -1e30f;  // finite: -inf - -inf would be NaN
    static constexpr float kMasked = -std::numeric_limits<float>::infinity();

    static void convert(const T* from, Left<T>* to, int count) {
        for_each_vector(count, [&](int64_t i, auto lanes) { store(to + i, load(from + i, lanes), lanes); });
    }

    /// Calls `function` with the tile height as a compile-time constant.
    template <class Function>
    static MX_INLINE void for_rows(int rows, Function function) {
        switch (rows) {
            case 1: return function(std::integral_constant<int, 1>{});
            case 2: return function(std::integral_constant<int, 2>{});
            case 3: return function(std::integral_constant<int, 3>{});
            case 4: return function(std::integral_constant<int, 4>{});
            case 5: return function(std::integral_constant<int, 5>{});
            default: return function(std::integral_constant<int, 6>{});
        }
    }

    /// scores[R][64] = q k^T * scale for rows `row ..`.
    template <int R>
    void score(int row, const Chunk<T>& chunk, const Chunk<T>* next) {
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
                right[v] = chunk.keys[vector / kVectorsPerGroup] + offset;
                prefetched[v] = next ? next->keys[vector / kVectorsPerGroup] + offset : nullptr;
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
                float* scores = scores_ + (row + r) * kChunkKeys + column;
                for (int v = 0; v < kVectors; ++v) store(scores + v * kLanes, sum[r][v] * scale_);
            }
        }
    }

    /// Turns the row's scores into probabilities relative to its running maximum.
    void softmax_row(int r, int32_t first_key) {
        float* scores = scores_ + r * kChunkKeys;
        mask(scores, visible_[r].begin - first_key, visible_[r].end - first_key);
        Floats highest = load(scores);
        for (int i = kLanes; i < kChunkKeys; i += kLanes) highest = max(load(scores + i), highest);
        const float maximum = std::max(maximum_[r], horizontal_max(highest));
        rescale_[r] = exp(splat(maximum_[r] - maximum))[0];
        maximum_[r] = maximum;
        Floats total = {};
        for (int i = 0; i < kChunkKeys; i += kLanes) {
            const Floats probability = exp(load(scores + i) - maximum);
            total += probability;
            store(probabilities_ + r * kChunkKeys + i, probability);
        }
        total_[r] = total_[r] * rescale_[r] + horizontal_sum(total);
    }

    static void mask(float* scores, int32_t begin, int32_t end) {
        if (begin > 0) std::fill(scores, scores + std::min(begin, kChunkKeys), kMasked);
        if (end < kChunkKeys) std::fill(scores + std::max(end, 0), scores + kChunkKeys, kMasked);
    }

    void add_values(const Chunk<T>& chunk, const Chunk<T>* next) {
        alignas(64) T half_steps[2 * kDepth * (kMaxHeadDim + kWidestLanes)];
        ValueRun<T> runs[kChunkGroups + 2];
        const int count = split_values(chunk, next, half_steps, runs);
        const RowTiles tiles(rows_);
        for (int64_t tile = 0; tile < tiles.count; ++tile) {
            for_rows(tiles.rows(tile), [&](auto rows) {
                constexpr int R = decltype(rows)::value;
                const int row = static_cast<int>(tiles.first_row(tile));
                constexpr int kVectors = tile_vectors(R);
                int d = 0;
                for (; d + kVectors * kLanes <= padded_dim_; d += kVectors * kLanes) {
                    add_columns<R, kVectors>(row, d, runs, count, tile == 0);
                }
                for (; d < padded_dim_; d += kLanes) add_columns<R, 1>(row, d, runs, count, tile == 0);
            });
        }
    }

    /// sums[R][V * kLanes] at dimension `d` = sums * rescale + P v.
    template <int R, int V>
    void add_columns(int row, int d, const ValueRun<T>* runs, int count, bool may_prefetch) {
        Floats sum[R][V];
        for (int r = 0; r < R; ++r) {
            const Floats factor = splat(rescale_[row + r]);
            for (int v = 0; v < V; ++v) sum[r][v] = load(sums_ + (row + r) * padded_dim_ + d + v * kLanes) * factor;
        }
        for (int i = 0; i < count; ++i) {
            const ValueRun<T>& run = runs[i];
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
            for (int v = 0; v < V; ++v) store(sums_ + (row + r) * padded_dim_ + d + v * kLanes, sum[r][v]);
        }
    }

    /// Cuts the chunk's visible values into runs, in ascending order. Values that nobody sees are not touched, because
    /// 0 times whatever an unused slot holds may be NaN; where only one token of a step is visible, the step is copied
    /// to `half_steps` with zeros for the other token.
    int split_values(const Chunk<T>& chunk, const Chunk<T>* next, T* half_steps, ValueRun<T>* runs) const {
        int count = 0;
        for (int g = 0; g < kChunkGroups; ++g) {
            const int32_t first = chunk.first_key + g * kGroupTokens;
            const int begin = std::clamp(chunk.visible.begin - first, 0, kGroupTokens);
            const int end = std::clamp(chunk.visible.end - first, 0, kGroupTokens);
            if (begin >= end) continue;
            const int first_step = g * (kGroupTokens / kDepth);
            const int whole_begin = (begin + kDepth - 1) / kDepth;
            const int whole_end = end / kDepth;
            const auto add_half = [&](int step, int token) {
                const T* copy = copy_half_step(chunk.values[g], step, token, half_steps);
                runs[count++] = {copy, first_step + step, 1, nullptr};
                half_steps += kDepth * (kMaxHeadDim + kWidestLanes);
            };
            if (begin % kDepth) add_half(begin / kDepth, 1);
            if (whole_begin < whole_end) {
                const int64_t offset = static_cast<int64_t>(whole_begin) * head_dim_ * kDepth;
                const int steps = whole_end - whole_begin;
                runs[count++] = {chunk.values[g] + offset, first_step + whole_begin, steps,
                                 next ? next->values[g] + offset : nullptr};
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

    const int head_dim_;
    const int padded_dim_;
    const float scale_;
    const int rows_;
    KeyRange visible_[kAttentionRows];
    float maximum_[kAttentionRows];
    float total_[kAttentionRows];
    float rescale_[kAttentionRows];
    alignas(64) Left<T> queries_[kAttentionRows * kMaxHeadDim];
    alignas(64) float scores_[kAttentionRows * kChunkKeys];
    alignas(64) Left<T> probabilities_[kAttentionRows * kChunkKeys];
    alignas(64) float sums_[kAttentionRows * (kMaxHeadDim + kWidestLanes)];
};

}  // namespace mx
