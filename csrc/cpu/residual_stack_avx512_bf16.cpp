// The residual stack for AVX512-BF16: bf16 precision only.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(                                                               \
    __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,avx2,fma,f16c,prefer-vector-width=512")
#endif

#define DEEPRES_LANES 16
#define DEEPRES_ROWS 8
#define DEEPRES_BF16_PAIRS
#include "cpu/residual_stack_kernels.h"

namespace deepres {
extern const StackKernels kStackAvx512Bf16 = Stack<PairedBf16, VectorProducts<PairedBf16>>::table();
}  // namespace deepres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
