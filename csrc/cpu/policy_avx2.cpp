// A policy with 256-bit vectors: AVX2 and FMA.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
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
#include "cpu/policy_kernels.h"

namespace deepres::policy {
extern const Act kActAvx2 = act;
}  // namespace deepres::policy

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
