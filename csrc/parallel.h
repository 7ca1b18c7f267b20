// Loops that only wake other threads when there is enough to do.
#pragma once

#include <algorithm>
#include <cstdint>

#include "team.h"

namespace mx {

inline int64_t divide_up(int64_t value, int64_t by) { return (value + by - 1) / by; }

/// Element-wise work up to so many elements, a few us of one core, stays on the calling thread.
constexpr int64_t kSerialElements = 1 << 13;

/// Tasks per thread of an evenly split loop: enough for a slow thread to be helped, few enough to cost nothing.
constexpr int64_t kPiecesPerThread = 4;

/// Calls `body(i)` for every i below `count` rows of `row_elements`; on all threads when that is much.
template <class Body>
inline void parallel_for(int64_t count, int64_t row_elements, const Body& body) {
    if (count * row_elements <= kSerialElements) {
        for (int64_t i = 0; i < count; ++i) body(i);
        return;
    }
    Team& team = Team::instance();
    const int64_t tasks = std::min(count, team.size() * kPiecesPerThread);
    team.run(tasks, [&](int64_t task) {
        const int64_t end = count * (task + 1) / tasks;
        for (int64_t i = count * task / tasks; i < end; ++i) body(i);
    });
}

/// Calls `body(i, j)` for every i below `count` and j below `inner_count`, in tasks that threads take one by one.
template <class Body>
inline void parallel_tasks(int64_t count, int64_t inner_count, bool is_serial, const Body& body) {
    if (is_serial) {
        for (int64_t i = 0; i < count; ++i) {
            for (int64_t j = 0; j < inner_count; ++j) body(i, j);
        }
        return;
    }
    Team::instance().run(count * inner_count, [&](int64_t task) { body(task / inner_count, task % inner_count); });
}

}  // namespace mx
