// A policy with 128-bit vectors: SSE2 and NEON, what every x86-64 and 64-bit ARM processor has.

#define DEEPRES_LANES 4
#include "cpu/policy_kernels.h"

namespace deepres::policy {
extern const Act kActGeneric = act;
}  // namespace deepres::policy
