// The residual stack for AVX-512.

#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx512f,avx512dq,avx512vl,avx2,fma"))), \
                             apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512vl,avx2,fma,prefer-vector-width=512")
#endif

#define DEEPRES_LANES 16
#define DEEPRES_ROWS 8
#define DEEPRES_TABLE kStackAvx512
#include "cpu/residual_stack_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
