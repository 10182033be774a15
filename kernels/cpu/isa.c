#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#endif

#include "kernels/cpu/cpu_device.h"
#include "runtime/base/log.h"

#define ISA_UNKNOWN (-1)

static _Atomic int isa_in_use = ISA_UNKNOWN;

static enum cpu_isa isa_of_processor(void) {
#if defined(__x86_64__)
    /* The builtins look at what the operating system saves, too; F16C they do not all know. */
    __builtin_cpu_init();
    unsigned eax, ebx, ecx = 0, edx;
    bool f16c = __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
    if (!f16c || !__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        return CPU_ISA_C;
    }
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
        __builtin_cpu_supports("avx512dq")) {
        return CPU_ISA_AVX512;
    }
    return CPU_ISA_AVX2;
#else
    return CPU_ISA_C;
#endif
}

const char *cpu_isa_name(enum cpu_isa isa) {
    static const char *const names[] = {"c", "avx2", "avx512"};
    return names[isa];
}

enum cpu_isa cpu_isa_override(enum cpu_isa isa) {
    enum cpu_isa best = isa_of_processor();
    enum cpu_isa used = isa < best ? isa : best;
    atomic_store(&isa_in_use, (int)used);
    return used;
}

enum cpu_isa cpu_isa(void) {
    int isa = atomic_load_explicit(&isa_in_use, memory_order_relaxed);
    if (isa != ISA_UNKNOWN) {
        return (enum cpu_isa)isa;
    }
    const char *wanted = getenv("TANDEM_CPU_ISA");
    for (int i = CPU_ISA_C; wanted != NULL && i <= CPU_ISA_AVX512; i++) {
        if (strcmp(wanted, cpu_isa_name((enum cpu_isa)i)) == 0) {
            return cpu_isa_override((enum cpu_isa)i);
        }
    }
    if (wanted != NULL) {
        log_warn("TANDEM_CPU_ISA: \"%s\" is none of c, avx2 and avx512; using the best that the processor has", wanted);
    }
    return cpu_isa_override(CPU_ISA_AVX512);
}
