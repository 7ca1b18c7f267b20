// Layout of packed linear weights: panels of 64 output columns, read front to back by the GEMM.
//
//   weight [N, K] (row n = output column n)        packed [ceil(N/64)][ceil(K/depth)][64][depth]
//
//        k ->                                      panel 0                   panel 1
//   n  +--------------------+                      +---------------------+   +-----
//   |  | 0  1  2  3  ...    |   depth 2 (bf16):    | n0: k0 k1 | n1: k0 k1 ... n63: k0 k1 |   one step
//   v  | ...                |                      | n0: k2 k3 | n1: k2 k3 ...            |   next step
//      +--------------------+                      +---------------------+
//                               depth 1 (fp16, fp32): one k per step
//
// Columns past N and an odd last k are zero. The depth belongs to the element type, not to the instruction set, so
// every library reads the same packed data.
#pragma once

#include <cstdint>

#include "elements.h"
#include "parallel.h"

namespace mx {

constexpr int kPanelColumns = 64;

template <class T>
constexpr int kPackDepth = 1;
template <>
constexpr int kPackDepth<Bf16> = 2;

inline int64_t panel_count(int64_t out_features) { return divide_up(out_features, kPanelColumns); }

/// K padded to whole steps.
template <class T>
inline int64_t padded_depth(int64_t in_features) {
    return divide_up(in_features, kPackDepth<T>) * kPackDepth<T>;
}

template <class T>
inline int64_t panel_elements(int64_t in_features) {
    return padded_depth<T>(in_features) * kPanelColumns;
}

}  // namespace mx
