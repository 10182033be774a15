/* What it takes to keep arrays of constant length in registers. */
#ifndef TANDEM_KERNELS_CPU_GEMM_UNROLL_H
#define TANDEM_KERNELS_CPU_GEMM_UNROLL_H

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* In front of a loop of up to 32 rounds. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* The vector is loaded once, here, and not again by each instruction that uses it: a load a cycle is all that some
 * processors sustain of whole cache lines. */
#define IN_REGISTER(vector) __asm__("" : "+v"(vector))

#endif
