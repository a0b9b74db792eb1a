// InfoNCE tiles with 256-bit vectors: AVX2 and FMA.

#include "info_nce.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#endif

#define DEEPRES_LANES 8
#include "info_nce_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace deepres::nce {
const Kernels kAvx2{pack,     logits, logit,   row_partials, row_sums,
                    col_sums, square, weights, split,        accumulate};
}  // namespace deepres::nce

#endif
