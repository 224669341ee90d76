/* One build serves every x86-64 CPU: the loops are compiled for three instruction sets and the best
 * is chosen at load time; clang makes one version, for any of them. Contraction to fused multiply-add
 * is off, so all give the same bits. */
#ifndef PSEUDOSUBTOMO_INSTRUCTION_SETS_H
#define PSEUDOSUBTOMO_INSTRUCTION_SETS_H

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#if __GNUC__ >= 12
#define PS_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else /* the first that makes clones for such a level */
#define PS_CLONES __attribute__((target_clones("default", "avx2", "avx512f")))
#endif
#define PS_HAVE_F16C 1
#else
#define PS_CLONES
#endif

#define PS_INLINE static inline __attribute__((always_inline)) /* part of each of a loop's versions */

/* The elements of two vectors, a's before b's, in the order of the numbers that follow. */
#ifdef __clang__
#define PS_SHUFFLE(indices, a, b, ...) __builtin_shufflevector(a, b, __VA_ARGS__)
#else /* which GCC has from 12 on only */
#define PS_SHUFFLE(indices, a, b, ...) __builtin_shuffle(a, b, (indices){__VA_ARGS__})
#endif

#endif
