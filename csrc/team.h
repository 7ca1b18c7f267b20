// Threads that share the work of the calling one.
//
//   calling thread:  phase 1 ............ | phase 2 ............ | ...      a phase is `count` tasks; whoever is free
//   worker 1:        tasks of phase 1 ... | tasks of phase 2 ... |          takes the next one, in ascending order
//   worker 2:        (on another core's queue, not running) .... |
//
// A phase ends when its tasks are done, not when every thread has come by. So a worker that the system does not run
// holds nobody up unless it was stopped inside a task, and a machine with other work costs its share of the cores, not
// the milliseconds that OpenMP's threads wait for each other at every loop (measured: docs/log.md).
//
// A free worker spins for a moment, because the next phase usually follows at once, and then sleeps.
#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>
#include <vector>

namespace mx {

class Team {
public:
    /// The one team of this library.
    static Team& instance();

    /// Threads that take tasks, the calling one included.
    int size() const { return size_.load(std::memory_order_relaxed); }

    /// Makes it `size` threads, or as many as the system gives. Waits for a run in progress.
    void resize(int size);

    /// Calls `body(task)` for every task below `count` and returns when all are done.
    ///
    /// One caller at a time; others wait for their turn.
    template <class Body>
    void run(int64_t count, const Body& body) {
        run_shared(count, [](const void* context, int64_t task) { (*static_cast<const Body*>(context))(task); }, &body);
    }

private:
    using Call = void (*)(const void* context, int64_t task);

    Team() = default;

    void run_shared(int64_t count, Call call, const void* context);
    void publish(int64_t count, Call call, const void* context);
    /// Takes and does one task of the current phase; false if none is left.
    bool do_task();
    void wait_until_done(int64_t count);
    void work(uint32_t phase);
    bool await_phase(uint32_t& phase);
    void start_workers(int count);
    void stop_workers();

    // The phase in progress. Written before `ticket_` announces it, and not again before all its tasks are done.
    Call call_ = nullptr;
    const void* context_ = nullptr;
    uint32_t count_ = 0;
    std::atomic<int> size_{1};

    alignas(64) std::atomic<uint64_t> ticket_{0};  // number of the phase << 32 | tasks that nobody has taken
    alignas(64) std::atomic<uint32_t> done_{0};
    alignas(64) std::atomic<int> sleeping_{0};
    std::atomic<bool> is_stopping_{false};

    std::mutex callers_;
    std::mutex sleep_;
    std::condition_variable wake_;
    std::vector<std::thread> workers_;
};

}  // namespace mx
