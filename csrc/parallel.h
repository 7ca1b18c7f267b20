// Loops over rows that only wake other threads when there is enough to do.
#pragma once

#include <cstdint>

namespace mx {

/// Calls `body(i)` for every i below `count`; on all threads when `count` exceeds `serial_count`.
///
/// The serial case is a plain loop: even a parallel region of one thread costs 0.6 us, as much as a short norm.
template <class Body>
inline void parallel_for(int64_t count, int64_t serial_count, Body body) {
    if (count <= serial_count) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i) body(i);
}

}  // namespace mx
