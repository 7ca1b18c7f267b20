// The one inner loop behind GEMM and attention: a small tile of sums kept in registers.
//
//            columns: V vectors of kLanes
//            +-----+-----+-----+-----+
//   k ------>|  right(k, 0 .. V-1)   |   loaded once per step, used by every row
//            +-----+-----+-----+-----+
//   x[r][k]  | sum[r][0] ... [V-1]   |   x is broadcast to all lanes
//            +-----------------------+   R rows
//
// A step takes kDepth elements of k: bf16 keeps two neighbouring k of one column side by side in 32 bits, which is what
// the bf16 dot-product instruction reads; fp16 and fp32 take one.
//
// Every sum adds its products in ascending k, one after the other, whatever R and V are. That is why a row's result
// does not depend on the rows that share its tile.
#pragma once

#include "products.h"

namespace mx {

/// How element type T is multiplied: `Left` is the broadcast operand's type, `Right` one loaded vector. This is the way
/// of fp32 and fp16; bf16 has one of its own.
template <class T>
struct Product {
    using Left = float;
    using Right = Floats;
    static constexpr int kDepth = 1;
    static constexpr int kSubsteps = 1;
    static MX_INLINE Right right(const T* w, int) { return load(w); }
    static MX_INLINE Right left(const float* x, int) { return splat(*x); }
    static MX_INLINE Floats add(Floats sum, Right x, Right w) { return fma(x, w, sum); }
};

#if defined(MX_HAS_BF16_PRODUCTS)
template <>
struct Product<Bf16> {
    using Left = Bf16;
    using Right = Words;
    static constexpr int kDepth = 2;
    static constexpr int kSubsteps = 1;
    static MX_INLINE Right right(const Bf16* w, int) { return load_words(w); }
    static MX_INLINE Right left(const Bf16* x, int) {
        uint32_t pair;
        std::memcpy(&pair, x, sizeof pair);
        return Words{} + pair;
    }
    static MX_INLINE Floats add(Floats sum, Right x, Right w) { return add_bf16_products(sum, x, w); }
};
#else
/// The pair is taken apart in two substeps, so that only one half of it occupies registers at a time.
template <>
struct Product<Bf16> {
    using Left = float;
    using Right = Floats;
    static constexpr int kDepth = 2;
    static constexpr int kSubsteps = 2;
    static MX_INLINE Right right(const Bf16* w, int substep) {
        const Words pairs = load_words(w);
        if (substep == 0) return (Floats)(pairs << 16);
        // Two shifts where a mask would occupy the register that a sum needs.
        return (Floats)(kVectorRegisters == 32 ? pairs & 0xffff0000u : opaque(pairs >> 16) << 16);
    }
    static MX_INLINE Right left(const float* x, int substep) { return splat(x[substep]); }
    static MX_INLINE Floats add(Floats sum, Right x, Right w) { return fma(x, w, sum); }
};
#endif

template <class T>
using Left = typename Product<T>::Left;

/// Elements of one vector of the right operand: kLanes columns, kDepth deep.
template <class T>
constexpr int kRightElements = kLanes * Product<T>::kDepth;

constexpr int kMaxTileRows = 6;

/// Vectors per row of a tile, so that its sums and operands fit the registers.
constexpr int tile_vectors(int rows) {
    if (kVectorRegisters == 32) return 4;
    return rows == 1 ? 8 : rows <= 3 ? 4 : 2;
}

/// Steps `begin .. end - 1` of k.
struct Steps {
    int64_t begin;
    int64_t end;
};

/// What to do at each step besides computing. Must be always_inline: GCC takes a function that only prefetches for one
/// without effect and drops the call.
constexpr auto no_prefetch = [](int64_t) MX_ALWAYS_INLINE {};

/// sum[r][v] += x[r][k] * right_at(k, v) for the steps of k; `prefetch(k)` runs once per step.
template <class T, int R, int V, class RightAt, class Prefetch>
MX_INLINE void accumulate(Floats (&sum)[R][V], const Left<T>* x, int64_t x_stride, Steps range, RightAt right_at,
                          Prefetch prefetch) {
    using P = Product<T>;
    for (int64_t k = range.begin; k < range.end; ++k) {
        prefetch(k);
#pragma GCC unroll 2
        for (int substep = 0; substep < P::kSubsteps; ++substep) {
            typename P::Right w[V];
#pragma GCC unroll 8
            for (int v = 0; v < V; ++v) w[v] = P::right(right_at(k, v), substep);
#pragma GCC unroll 6
            for (int r = 0; r < R; ++r) {
                const typename P::Right broadcast = P::left(x + r * x_stride + k * P::kDepth, substep);
#pragma GCC unroll 8
                for (int v = 0; v < V; ++v) sum[r][v] = P::add(sum[r][v], broadcast, w[v]);
            }
        }
    }
}

/// Splits `rows` into tiles of nearly equal height (13 -> 5, 4, 4): a last tile of one row would waste its loads.
struct RowTiles {
    int64_t count;
    int64_t height;
    int64_t taller;

    explicit RowTiles(int64_t rows)
        : count((rows + kMaxTileRows - 1) / kMaxTileRows),
          height(count ? rows / count : 0),
          taller(count ? rows % count : 0) {}

    int64_t first_row(int64_t tile) const { return tile * height + (tile < taller ? tile : taller); }
    int rows(int64_t tile) const { return static_cast<int>(height + (tile < taller ? 1 : 0)); }
};

}  // namespace mx
