// Hazards with 128-bit vectors: SSE2 and NEON, what every x86-64 and 64-bit ARM processor has.

#define DEEPRES_LANES 4
#include "cpu/hazard_kernels.h"

namespace deepres::hazard {
const Kernels kGeneric{product, nll, survive, value_gradients, row_sums};
}  // namespace deepres::hazard
