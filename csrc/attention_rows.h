// The query rows of one attention work item and their running softmax, whatever the format of the KV cache.
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
struct Chunk {
    int32_t first_key;
    KeyRange visible;  // keys of the chunk that some row of the tile sees
    const char* keys[kChunkGroups];
    const char* values[kChunkGroups];
};

/// Calls `function` with the tile height as a compile-time constant.
template <class Function>
MX_INLINE void for_rows(int rows, Function function) {
    switch (rows) {
        case 1: return function(std::integral_constant<int, 1>{});
        case 2: return function(std::integral_constant<int, 2>{});
        case 3: return function(std::integral_constant<int, 3>{});
        case 4: return function(std::integral_constant<int, 4>{});
        case 5: return function(std::integral_constant<int, 5>{});
        default: return function(std::integral_constant<int, 6>{});
    }
}

/// Calls `function(rows, first_row, is_first)` for every tile of `count` rows; `rows` is a compile-time constant.
template <class Function>
MX_INLINE void for_row_tiles(int count, Function function) {
    const RowTiles tiles(count);
    for (int64_t tile = 0; tile < tiles.count; ++tile) {
        for_rows(tiles.rows(tile), [&](auto rows) {
            function(rows, static_cast<int>(tiles.first_row(tile)), tile == 0);
        });
    }
}

/// Up to 48 rows: which keys each sees, its scores of the present chunk, and its softmax and sums so far.
///
/// Keys come in parts (drawing in attention.cpp). The state of a row is its maximum, total and sums in the present part,
/// and the same of all earlier parts together.
class AttentionRows {
public:
    /// Floats that `save_part` writes for a row.
    static int64_t state_floats(int head_dim) { return padded(head_dim) + kWidestLanes; }

    /// Adds the present part to the earlier ones and starts a new one.
    void next_part() {
        for (int r = 0; r < rows_; ++r) {
            combine(r);
            clear_part(r);
        }
        has_earlier_ = true;
    }

    /// Adds the present part to the earlier ones, for `store_row`.
    void finish() {
        if (!has_earlier_) return;
        for (int r = 0; r < rows_; ++r) {
            combine(r);
            maximum_[r] = earlier_maximum_[r];
            total_[r] = earlier_total_[r];
            std::copy_n(earlier_sums_ + r * padded_dim_, padded_dim_, sums_of(r));
        }
    }

    /// Writes the row's state in the present part.
    void save_part(int r, float* to) const {
        to[0] = maximum_[r];
        to[1] = total_[r];
        std::copy_n(sums_of(r), padded_dim_, to + kWidestLanes);
    }

    /// Takes a state that `save_part` wrote.
    void load_part(int r, const float* from) {
        maximum_[r] = from[0];
        total_[r] = from[1];
        std::copy_n(from + kWidestLanes, padded_dim_, sums_of(r));
    }

    template <class T>
    void store_row(int r, T* out) const {
        const Floats inverse = splat(1.0f / total_[r]);
        const float* sums = sums_of(r);
        for_each_vector(head_dim_, [&](int64_t d, auto lanes) {
            // + 0: a sum that underflowed to -0 must not tell whether masked keys, each adding +0, came after it.
            store(out + d, load(sums + d) * inverse + 0.0f, lanes);
        });
    }

protected:
    AttentionRows(const MxGeometry& geometry, int rows)
        : head_dim_(geometry.head_dim),
          padded_dim_(static_cast<int>(padded(geometry.head_dim))),
          scale_(geometry.scale),
          rows_(rows),
          window_(geometry.sliding_window),
          soft_cap_(geometry.soft_cap) {}

    /// Takes row `r` at `position`.
    void start_row(int r, int32_t position) {
        visible_[r] = {window_ > 0 ? std::max(0, position - window_ + 1) : 0, position + 1};
        clear_part(r);
    }

    /// Turns the row's scores into probabilities relative to its running maximum, and hands them to
    /// `keep(first, vector)`.
    template <class Keep>
    void softmax_row(int r, int32_t first_key, Keep keep) {
        float* scores = scores_of(r);
        if (soft_cap_ > 0) cap(scores);
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
            keep(i, probability);
        }
        total_[r] = total_[r] * rescale_[r] + horizontal_sum(total);
    }

    float* scores_of(int r) { return scores_ + r * kChunkKeys; }
    float* sums_of(int r) { return sums_ + r * padded_dim_; }
    const float* sums_of(int r) const { return sums_ + r * padded_dim_; }
    float rescale(int r) const { return rescale_[r]; }

    const int head_dim_;
    const int padded_dim_;
    const float scale_;
    const int rows_;

private:
    static constexpr float kNothingSeen = -1e30f;  // finite: -inf - -inf would be NaN
    static constexpr float kMasked = -std::numeric_limits<float>::infinity();

    static int64_t padded(int head_dim) { return (head_dim + kWidestLanes - 1) / kWidestLanes * kWidestLanes; }

    void clear_part(int r) {
        maximum_[r] = kNothingSeen;
        total_[r] = 0.0f;
        std::fill_n(sums_of(r), padded_dim_, 0.0f);
    }

    /// Adds the row's present part to its earlier ones. Where it saw no key on one side, it gets the other exactly.
    void combine(int r) {
        float* earlier = earlier_sums_ + r * padded_dim_;
        const float* sums = sums_of(r);
        if (!has_earlier_) {
            earlier_maximum_[r] = maximum_[r];
            earlier_total_[r] = total_[r];
            std::copy_n(sums, padded_dim_, earlier);
            return;
        }
        const float maximum = std::max(earlier_maximum_[r], maximum_[r]);
        const Floats old_factor = exp(splat(earlier_maximum_[r] - maximum));
        const Floats new_factor = exp(splat(maximum_[r] - maximum));
        earlier_maximum_[r] = maximum;
        earlier_total_[r] = earlier_total_[r] * old_factor[0] + total_[r] * new_factor[0];
        for (int d = 0; d < padded_dim_; d += kLanes) {
            store(earlier + d, fma(load(sums + d), new_factor, load(earlier + d) * old_factor));
        }
    }

    /// scores = cap * tanh(scores / cap)
    void cap(float* scores) const {
        for (int i = 0; i < kChunkKeys; i += kLanes) {
            // tanh(x) = 1 - 2 / (e^2x + 1); it is 1 to the last bit from 2x = 20 on. The comparison keeps NaN.
            const Floats twice = load(scores + i) * (2.0f / soft_cap_);
            const Floats power = exp(twice > 40.0f ? splat(40.0f) : twice);
            store(scores + i, soft_cap_ - 2.0f * soft_cap_ / (power + 1.0f));
        }
    }

    static void mask(float* scores, int32_t begin, int32_t end) {
        if (begin > 0) std::fill(scores, scores + std::min(begin, kChunkKeys), kMasked);
        if (end < kChunkKeys) std::fill(scores + std::max(end, 0), scores + kChunkKeys, kMasked);
    }

    const int window_;
    const float soft_cap_;
    bool has_earlier_ = false;
    KeyRange visible_[kAttentionRows];
    float earlier_maximum_[kAttentionRows];
    float earlier_total_[kAttentionRows];
    float maximum_[kAttentionRows];
    float total_[kAttentionRows];
    float rescale_[kAttentionRows];
    alignas(64) float scores_[kAttentionRows * kChunkKeys];
    alignas(64) float sums_[kAttentionRows * kMaxHeadDim];
    alignas(64) float earlier_sums_[kAttentionRows * kMaxHeadDim];
};

}  // namespace mx
