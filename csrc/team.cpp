// The threads of team.h: how tasks are handed out, and how workers wait.

#include "team.h"

#include <chrono>
#include <system_error>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#define MX_HAS_POSIX_THREADS 1
#endif

namespace mx {
namespace {

// A worker looks so long for the next phase before it sleeps: longer than Python needs between two calls, shorter than
// anybody else on the core would mind.
constexpr std::chrono::microseconds kSpin{50};
constexpr int kLooksPerClock = 64;    // reading the clock costs more than a look
constexpr int kPausesBeforeYield = 2048;  // so long the calling thread waits before it offers its core

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

inline void yield() {
#if MX_HAS_POSIX_THREADS
    sched_yield();
#else
    std::this_thread::yield();
#endif
}

/// Keeps signals from the threads that are started during its life.
class BlockedSignals {
#if MX_HAS_POSIX_THREADS
public:
    BlockedSignals() {
        sigset_t all;
        sigfillset(&all);
        pthread_sigmask(SIG_SETMASK, &all, &before_);
    }
    ~BlockedSignals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }

private:
    sigset_t before_;
#endif
};

inline uint32_t phase_of(uint64_t ticket) { return static_cast<uint32_t>(ticket >> 32); }
inline uint32_t remaining(uint64_t ticket) { return static_cast<uint32_t>(ticket); }

}  // namespace

Team& Team::instance() {
    // Never destroyed: at exit workers may still sleep in it. A forked child has no workers; it gets a team of its own.
    static Team* team = nullptr;
    static std::once_flag once;
    std::call_once(once, [] {
        team = new Team;
#if MX_HAS_POSIX_THREADS
        pthread_atfork(nullptr, nullptr, [] { team = new Team; });
#endif
    });
    return *team;
}

void Team::resize(int size) {
    const std::lock_guard<std::mutex> turn(callers_);
    if (size == this->size()) return;
    stop_workers();
    start_workers(size - 1);
    size_ = static_cast<int>(workers_.size()) + 1;
}

void Team::start_workers(int count) {
    const uint32_t phase = phase_of(ticket_.load());
    const BlockedSignals blocked;  // inherited by the workers: signals are for the program's own threads
    try {
        for (int i = 0; i < count; ++i) workers_.emplace_back([this, phase] { work(phase); });
    } catch (const std::system_error&) {
        // No more threads are allowed here: go on with those that there are.
    }
}

void Team::stop_workers() {
    is_stopping_ = true;
    {
        const std::lock_guard<std::mutex> lock(sleep_);
        wake_.notify_all();
    }
    for (std::thread& worker : workers_) worker.join();
    workers_.clear();
    is_stopping_ = false;
}

void Team::run_shared(int64_t count, Call call, const void* context) {
    if (count <= 1 || size() == 1) {
        for (int64_t task = 0; task < count; ++task) call(context, task);
        return;
    }
    const std::lock_guard<std::mutex> turn(callers_);
    publish(count, call, context);
    while (do_task()) {
    }
    wait_until_done(count);
}

void Team::publish(int64_t count, Call call, const void* context) {
    call_ = call;
    context_ = context;
    count_ = static_cast<uint32_t>(count);
    done_.store(0, std::memory_order_relaxed);
    const uint64_t phase = phase_of(ticket_.load(std::memory_order_relaxed)) + uint64_t{1};
    ticket_.store(phase << 32 | count_, std::memory_order_seq_cst);
    if (sleeping_.load(std::memory_order_seq_cst) > 0) {
        const std::lock_guard<std::mutex> lock(sleep_);
        wake_.notify_all();
    }
}

bool Team::do_task() {
    uint64_t ticket = ticket_.load(std::memory_order_acquire);
    do {
        if (remaining(ticket) == 0) return false;
    } while (!ticket_.compare_exchange_weak(ticket, ticket - 1, std::memory_order_acq_rel, std::memory_order_acquire));
    // The phase cannot end before this task is done, so what describes it stays as it is.
    call_(context_, count_ - remaining(ticket));
    done_.fetch_add(1, std::memory_order_release);
    return true;
}

void Team::wait_until_done(int64_t count) {
    for (int pauses = 0; done_.load(std::memory_order_acquire) != static_cast<uint32_t>(count); ++pauses) {
        if (pauses < kPausesBeforeYield) {
            pause();
        } else {
            yield();  // perhaps to the worker that we wait for
        }
    }
}

void Team::work(uint32_t phase) {
    while (await_phase(phase)) {
        while (do_task()) {
        }
    }
}

/// Waits for a phase after `phase`, which then becomes it; false if the worker is to end.
bool Team::await_phase(uint32_t& phase) {
    const auto is_next = [&] { return is_stopping_ || phase_of(ticket_.load(std::memory_order_seq_cst)) != phase; };
    const auto deadline = std::chrono::steady_clock::now() + kSpin;
    for (int looks = 1; !is_next(); ++looks) {
        if (looks % kLooksPerClock == 0 && std::chrono::steady_clock::now() > deadline) {
            std::unique_lock<std::mutex> lock(sleep_);
            sleeping_.fetch_add(1, std::memory_order_seq_cst);
            wake_.wait(lock, is_next);
            sleeping_.fetch_sub(1, std::memory_order_relaxed);
            break;
        }
        pause();
    }
    phase = phase_of(ticket_.load(std::memory_order_acquire));
    return !is_stopping_;
}

}  // namespace mx
