// Lengths of unions with 512-bit vectors: AVX-512 (F, BW, DQ, VL).

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <limits>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define DEEPRES_LANES 16
#include "cpu/unions_kernels.h"

namespace deepres::unions {
const Kernels kAvx512{lengths, gradients};
}  // namespace deepres::unions

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
