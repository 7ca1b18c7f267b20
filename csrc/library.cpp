// What a library says about itself and about the CPU; its threads; recorded calls.

#include <cstring>

#include "kernels.h"
#include "team.h"

#if defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>

namespace {
// HWCAP2_I8MM and HWCAP2_BF16 of the kernel's asm/hwcap.h, which older headers lack.
constexpr unsigned long kArmProducts = 1ul << 13 | 1ul << 14;
}  // namespace
#endif

int32_t mx_abi_version() { return MX_ABI_VERSION; }

void mx_set_num_threads(int32_t num_threads) { mx::Team::instance().resize(num_threads); }

void mx_replay(const MxRecordedCall* calls, int64_t count) {
    for (int64_t i = 0; i < count; ++i) calls[i].operation(calls[i].call);
}

int32_t mx_cpu_supports(const char* isa) {
    if (std::strcmp(isa, "generic") == 0) return 1;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                      __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("f16c");
    if (std::strcmp(isa, "avx2") == 0) return avx2;
    const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                        __builtin_cpu_supports("avx512cd") && __builtin_cpu_supports("avx512dq") &&
                        __builtin_cpu_supports("avx512vl");
    if (std::strcmp(isa, "avx512") == 0) return avx512;
    if (std::strcmp(isa, "avx512_bf16") == 0) {
        return avx512 && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
    }
#elif defined(__aarch64__) && defined(__linux__)
    if (std::strcmp(isa, "arm64_bf16") == 0) return (getauxval(AT_HWCAP2) & kArmProducts) == kArmProducts;
#endif
    return 0;
}
