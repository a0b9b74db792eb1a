// InfoNCE tiles with 128-bit vectors: SSE2 and NEON, what every x86-64 and 64-bit ARM processor has.

#include "info_nce.h"

#define DEEPRES_LANES 4
#include "info_nce_kernels.h"

namespace deepres::nce {
const Kernels kGeneric{pack,     logits, logit,   row_partials, row_sums,
                       col_sums, square, weights, split,        accumulate};
}  // namespace deepres::nce
