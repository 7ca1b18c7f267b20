// Attention rows over an int8 KV cache (layout: kv_int8.h); drawing in attention.cpp.
//
//   scores          query and keys are int8 groups of 32 dimensions: exact integer sums, scaled and added in ascending
//                   order, as in a linear layer (linear_int8.cpp)
//   probabilities   p of a token is multiplied with its value's scale; the 64 products of a row and chunk become bytes
//                   0 .. 255 with one scale, their largest / 255
//   sums            bytes of values and of probabilities are multiplied and added exactly over the chunk, then scaled
//
// A probability of 0 stays 0 whatever its value's scale is, so that unused slots may hold anything: their bytes are
// multiplied with 0, and there is no NaN among bytes.
#pragma once

#include "attention_rows.h"
#include "kv_int8.h"

namespace mx {

/// Four bytes 0 .. 255 of neighbouring tokens' probabilities, and the values they are multiplied with.
#if defined(MX_HAS_BYTE_PRODUCTS)

using WeightQuad = uint32_t;
inline void make_weight_quads(const uint8_t* q, int count, WeightQuad* quads) {
    std::memcpy(quads, q, sizeof(WeightQuad) * static_cast<size_t>(count));
}

using Int8Values = Words;
MX_INLINE Int8Values prepare_values(Words quads) { return quads; }

/// Adds, in every lane, the products of four weights and four values.
MX_INLINE Ints add_weighted(Ints sum, const Int8Values& values, const WeightQuad& weights) {
    return add_byte_products(sum, Words{} + weights, values);
}

#else

using WeightQuad = Int8Quad;
inline void make_weight_quads(const uint8_t* q, int count, WeightQuad* quads) {
    for (int quad = 0; quad < count; ++quad, q += 4) {
        quads[quad] = {q[0] | static_cast<uint32_t>(q[2]) << 16, q[1] | static_cast<uint32_t>(q[3]) << 16};
    }
}

struct Int8Values {
    Words even;
    Words odd;
};
MX_INLINE Int8Values prepare_values(Words quads) {
    typedef int16_t Halves __attribute__((vector_size(kLanes * 4)));
    return {(Words)((Halves)(quads << 8) >> 8), (Words)((Halves)quads >> 8)};
}
MX_INLINE Ints add_weighted(Ints sum, const Int8Values& values, const WeightQuad& weights) {
    return sum + multiply_pairs(values.even, Words{} + weights.even) +
           multiply_pairs(values.odd, Words{} + weights.odd);
}

#endif

class Int8Attention : public AttentionRows {
public:
    using Format = Int8Kv;

    Int8Attention(const MxGeometry& geometry, int rows)
        : AttentionRows(geometry, rows), groups_((geometry.head_dim + kInt8Group - 1) / kInt8Group) {}

    /// Takes the query of row `r` at `position`.
    template <class T>
    void load_row(int r, const T* query, int32_t position) {
        start_row(r, position);
        quantise_row(query, head_dim_, kInt8Offset, groups_, queries_ + r * groups_);
    }

    void add_chunk(const Chunk& chunk, const Chunk* next) {
        for_row_tiles(rows_, [&](auto rows, int row, bool is_first) {
            score<decltype(rows)::value>(row, chunk, is_first ? next : nullptr);
        });
        if (next) prefetch_value_scales(*next);
        for (int r = 0; r < rows_; ++r) weigh_values(r, chunk);
        const int first = chunk.visible.begin - chunk.first_key, last = chunk.visible.end - chunk.first_key;
        const ValueQuads quads{chunk, next, first / 4, (last + 3) / 4};
        for_row_tiles(rows_, [&](auto rows, int row, bool is_first) {
            constexpr int R = decltype(rows)::value;
            add_values<R, value_vectors(R)>(row, 0, quads, is_first && next);
        });
    }

private:
    static constexpr int kVectorsPerGroup = kGroupTokens / kLanes;
    static constexpr int kChunkQuads = kChunkKeys / 4;

    /// The tokens of a chunk that somebody sees, in fours: `begin .. end - 1`.
    struct ValueQuads {
        const Chunk& chunk;
        const Chunk* next;
        int begin;
        int end;
    };

    /// Vectors of keys that fit the registers: integer and float32 sums of every row, and the keys.
    static constexpr int key_vectors(int rows) {
        if (kVectorRegisters == 32) return rows <= 3 ? 4 : 2;
        return rows <= 2 ? 2 : 1;
    }

    /// The same of values, which have integer sums only.
    static constexpr int value_vectors(int rows) {
        if (kVectorRegisters == 32) return rows <= 2 ? 8 : 4;
        return rows <= 2 ? 4 : rows <= 3 ? 2 : 1;
    }

    /// scores[R][64] = q k^T * scale for rows `row ..`.
    template <int R>
    void score(int row, const Chunk& chunk, const Chunk* next) {
        constexpr int V = key_vectors(R);
        for (int vector = 0; vector < kChunkKeys / kLanes; vector += V) {
            Floats sum[R][V] = {};
            for (int group = 0; group < groups_; ++group) {
                const int quads = std::min(kInt8Quads, head_dim_ / 4 - group * kInt8Quads);
                if (next) {
                    const auto prefetch = [&](int quad) MX_ALWAYS_INLINE {
                        const int64_t offset = (group * kInt8Quads + quad) * Int8Kv::kQuadBytes;
                        for (int v = 0; v < V; ++v) __builtin_prefetch(keys_of(*next, vector + v) + offset, 0, 2);
                    };
                    add_group<R, V>(sum, row, group, quads, chunk, vector, prefetch);
                } else {
                    add_group<R, V>(sum, row, group, quads, chunk, vector, [](int) {});
                }
            }
            if (next) prefetch_key_scales<V>(*next, vector);
            for (int r = 0; r < R; ++r) {
                float* scores = scores_of(row + r) + vector * kLanes;
                for (int v = 0; v < V; ++v) store(scores + v * kLanes, sum[r][v] * scale_);
            }
        }
    }

    /// Where the tokens of a chunk's vector start in their group of keys.
    static const char* keys_of(const Chunk& chunk, int vector) {
        return chunk.keys[vector / kVectorsPerGroup] + vector % kVectorsPerGroup * kLanes * 4;
    }

    template <int R, int V, class Prefetch>
    MX_INLINE void add_group(Floats (&sum)[R][V], int row, int group, int quads, const Chunk& chunk, int vector,
                             Prefetch prefetch) const {
        const Int8Group* x = queries_ + row * groups_ + group;
        if (quads == kInt8Quads) {
            add_quads<R, V>(sum, x, group, kInt8Quads, chunk, vector, prefetch);
        } else {
            add_quads<R, V>(sum, x, group, quads, chunk, vector, prefetch);
        }
    }

    /// Adds the products of one group of dimensions, of which there are `quads` times four.
    template <int R, int V, class Prefetch>
    MX_INLINE void add_quads(Floats (&sum)[R][V], const Int8Group* x, int group, int quads, const Chunk& chunk,
                             int vector, Prefetch prefetch) const {
        Ints whole[R][V];
        const char* keys[V];
        for (int r = 0; r < R; ++r) {
            for (int v = 0; v < V; ++v) whole[r][v] = Ints{} + x[r * groups_].start;
        }
        for (int v = 0; v < V; ++v) keys[v] = keys_of(chunk, vector + v) + group * kInt8Quads * Int8Kv::kQuadBytes;
#pragma GCC unroll 8
        for (int quad = 0; quad < quads; ++quad) {
            prefetch(quad);
            Int8Weights w[V];
#pragma GCC unroll 4
            for (int v = 0; v < V; ++v) w[v] = prepare_weights(load_words(keys[v] + quad * Int8Kv::kQuadBytes));
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const Int8Quad& queries = x[r * groups_].quads[quad];
#pragma GCC unroll 4
                for (int v = 0; v < V; ++v) whole[r][v] = add_products(whole[r][v], w[v], queries);
            }
        }
#pragma GCC unroll 4
        for (int v = 0; v < V; ++v) {
            const Floats scale = load(key_scales(chunk, vector + v) + group * kGroupTokens);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                sum[r][v] = fma(to_floats(whole[r][v]) * scale, splat(x[r * groups_].scale), sum[r][v]);
            }
        }
    }

    const Bf16* key_scales(const Chunk& chunk, int vector) const {
        const char* scales = chunk.keys[vector / kVectorsPerGroup] + Int8Kv::scale_offset(head_dim_);
        return reinterpret_cast<const Bf16*>(scales) + vector % kVectorsPerGroup * kLanes;
    }

    template <int V>
    void prefetch_key_scales(const Chunk& chunk, int vector) const {
        for (int v = 0; v < V; ++v) {
            const Bf16* scales = key_scales(chunk, vector + v);
            for (int group = 0; group < groups_; group += 2) {
                __builtin_prefetch(scales + group * kGroupTokens, 0, 2);
            }
        }
    }

    void prefetch_value_scales(const Chunk& chunk) const {
        for (const char* group : chunk.values) __builtin_prefetch(group + Int8Kv::scale_offset(head_dim_), 0, 2);
    }

    /// The row's softmax, then its probabilities times the values' scales as bytes.
    void weigh_values(int r, const Chunk& chunk) {
        float* weights = scores_of(r);
        Floats largest = {};
        softmax_row(r, chunk.first_key, [&](int i, Floats probability) {
            const char* scales = chunk.values[i / kGroupTokens] + Int8Kv::scale_offset(head_dim_);
            const Floats scale = load(reinterpret_cast<const float*>(scales) + i % kGroupTokens);
            const Floats weight = probability == 0.0f ? Floats{} : probability * scale;
            largest = max_magnitude(largest, weight);
            store(weights + i, weight);
        });
        weight_scales_[r] = horizontal_max_magnitude(largest) / 255.0f;
        const Floats inverse = splat(weight_scales_[r] > 0 ? 1.0f / weight_scales_[r] : 0.0f);
        alignas(64) uint8_t bytes[kChunkKeys];
        for (int i = 0; i < kChunkKeys; i += kLanes) {
            const Ints q = round_to_ints(min(load(weights + i) * inverse, splat(255.0f)));
            store_bytes(reinterpret_cast<int8_t*>(bytes) + i, q);
        }
        make_weight_quads(bytes, kChunkQuads, weights_[r]);
    }

    /// Adds P v for rows `row ..` from dimension `d` on: V vectors at a time while so many are left, then fewer.
    template <int R, int V>
    void add_values(int row, int d, const ValueQuads& quads, bool may_prefetch) {
        for (; d + V * kLanes <= padded_dim_; d += V * kLanes) {
            if (may_prefetch) {
                add_columns<R, V, true>(row, d, quads);
            } else {
                add_columns<R, V, false>(row, d, quads);
            }
        }
        if constexpr (V > 1) add_values<R, V / 2>(row, d, quads, may_prefetch);
    }

    /// sums[R][V * kLanes] at dimension `d` = sums * rescale + P v.
    template <int R, int V, bool kPrefetch>
    void add_columns(int row, int d, const ValueQuads& quads) {
        Ints whole[R][V] = {};
        for (int quad = quads.begin; quad < quads.end; ++quad) {
            const int64_t offset = (int64_t{quad % 4} * head_dim_ + d) * 4;
            const char* values = quads.chunk.values[quad / 4] + offset;
            if constexpr (kPrefetch) {
                const char* next = quads.next->values[quad / 4] + offset;
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) __builtin_prefetch(next + v * kLanes * 4, 0, 2);
            }
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) {
                const Int8Values vector = prepare_values(load_words(values + v * kLanes * 4));
#pragma GCC unroll 6
                for (int r = 0; r < R; ++r) {
                    whole[r][v] = add_weighted(whole[r][v], vector, weights_[row + r][quad]);
                }
            }
        }
        for (int r = 0; r < R; ++r) {
            const Floats factor = splat(rescale(row + r)), scale = splat(weight_scales_[row + r]);
            for (int v = 0; v < V; ++v) {
                float* sums = sums_of(row + r) + d + v * kLanes;
                store(sums, fma(to_floats(whole[r][v]), scale, load(sums) * factor));
            }
        }
    }

    const int groups_;
    float weight_scales_[kAttentionRows];
    WeightQuad weights_[kAttentionRows][kChunkQuads];
    Int8Group queries_[kAttentionRows * (kMaxHeadDim / kInt8Group)];
};

}  // namespace mx
