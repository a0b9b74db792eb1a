// Hazards with 256-bit vectors: AVX2 and FMA.

#if defined(__x86_64__)
#include <immintrin.h>

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define DEEPRES_LANES 8
#include "cpu/hazard_kernels.h"

namespace deepres::hazard {
const Kernels kAvx2{product, nll, survive, value_gradients, row_sums};
}  // namespace deepres::hazard

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
