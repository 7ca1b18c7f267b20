// Threads, and loops that only wake other ones when there is enough to do.
#pragma once

#include <cstdint>

// Declared here, not taken from <omp.h>: the symbol binds at load time to the OpenMP runtime that torch brought.
extern "C" int omp_get_max_threads();

namespace mx {

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

/// Element-wise work up to so many elements, a few us of one core, stays on the calling thread. That keeps small models
/// quick on busy machines, where a woken thread may have to wait milliseconds for a core.
constexpr int64_t kSerialElements = 1 << 13;

/// Calls `body(i)` for every i below `count` rows of `row_elements`; on all threads when that is much.
///
/// The serial case is a plain loop: even a parallel region of one thread costs 0.6 us, as much as a short norm.
template <class Body>
inline void parallel_for(int64_t count, int64_t row_elements, Body body) {
    if (count * row_elements <= kSerialElements) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
#pragma omp parallel for schedule(static)
    for (int64_t i = 0; i < count; ++i) body(i);
}

/// Calls `body(i, j)` for every i below `count` and j below `inner_count`, in tasks that threads take one by one.
template <class Body>
inline void parallel_tasks(int64_t count, int64_t inner_count, bool is_serial, Body body) {
    if (is_serial) {
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t j = 0; j < inner_count; ++j) body(i, j);
        }
        return;
    }
#pragma omp parallel for schedule(dynamic, 1) collapse(2)
    for (int64_t i = 0; i < count; ++i) {
        for (int64_t j = 0; j < inner_count; ++j) body(i, j);
    }
}

}  // namespace mx
