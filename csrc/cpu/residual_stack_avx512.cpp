// The residual stack for AVX-512.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
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
#define DEEPRES_ROWS 8
#include "cpu/residual_stack_kernels.h"

namespace deepres {
extern const StackKernels kStackAvx512[2] = {Stack<Fp32, VectorProducts<Fp32>>::table(),
                                             Stack<RoundedBf16, VectorProducts<RoundedBf16>>::table()};
}  // namespace deepres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
