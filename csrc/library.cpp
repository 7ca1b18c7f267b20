// What a library says about itself and about the CPU.

#include <cstring>

#include "kernels.h"
#include "parallel.h"

int32_t mx_abi_version() { return MX_ABI_VERSION; }

int32_t mx_num_threads() { return omp_get_max_threads(); }

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
#endif
    return 0;
}
