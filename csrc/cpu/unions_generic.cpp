// Lengths of unions with 128-bit vectors: SSE2 and NEON, what every x86-64 and 64-bit ARM processor has.

#define DEEPRES_LANES 4
#include "cpu/unions_kernels.h"

namespace deepres::unions {
const Kernels kGeneric{lengths, gradients};
}  // namespace deepres::unions
