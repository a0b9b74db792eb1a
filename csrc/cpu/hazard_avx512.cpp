// Hazards with 512-bit vectors: AVX-512 (F, BW, DQ, VL).

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define DEEPRES_LANES 16
#include "cpu/hazard_kernels.h"

namespace deepres::hazard {
const Kernels kAvx512{product, nll, survive, value_gradients, row_sums};
}  // namespace deepres::hazard

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
