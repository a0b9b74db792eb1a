// InfoNCE tiles with 512-bit vectors: AVX-512 (F, BW, DQ, VL).

#include "info_nce.h"

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(                                                                  \
    __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512"))), \
    apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,fma,prefer-vector-width=512")
#endif

#define DEEPRES_LANES 16
#include "info_nce_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif

namespace deepres::nce {
const Kernels kAvx512{pack,     logits, logit,   row_partials, row_sums,
                      col_sums, square, weights, split,        accumulate};
}  // namespace deepres::nce

#endif
