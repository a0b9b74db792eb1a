// The residual stack for AVX2 with FMA.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c"))), apply_to = function)
#else
#pragma GCC target("avx2,fma,f16c")
#endif

#define DEEPRES_LANES 8
#define DEEPRES_ROWS 6
#include "cpu/residual_stack_kernels.h"

namespace deepres {
extern const StackKernels kStackAvx2[2] = {Stack<Fp32, VectorProducts<Fp32>>::table(),
                                           Stack<RoundedBf16, VectorProducts<RoundedBf16>>::table()};
}  // namespace deepres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
