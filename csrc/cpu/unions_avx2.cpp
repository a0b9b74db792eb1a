// Lengths of unions with 256-bit vectors: AVX2 and FMA.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define DEEPRES_LANES 8
#include "cpu/unions_kernels.h"

namespace deepres::unions {
const Kernels kAvx2{lengths, gradients};
}  // namespace deepres::unions

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
