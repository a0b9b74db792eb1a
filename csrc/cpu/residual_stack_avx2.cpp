// The residual stack for AVX2 with FMA.

#if defined(__x86_64__)
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma"))), apply_to = function)
#else
#pragma GCC target("avx2,fma")
#endif

#define DEEPRES_LANES 8
#define DEEPRES_ROWS 4
#define DEEPRES_TABLE kStackAvx2
#include "cpu/residual_stack_kernels.h"

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
