// The form of the chain kernels' products, by DEEPRES_SWAPPED; both offer the same names.
#pragma once

#if DEEPRES_SWAPPED
#include "wgmma_statistics.cuh"
#else
#include "statistics.cuh"
#endif
