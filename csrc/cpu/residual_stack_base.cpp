// The residual stack for vectors of four: NEON, SSE2, or whatever the compiler makes of them.

#define DEEPRES_LANES 4
#define DEEPRES_ROWS 4
#define DEEPRES_TABLE kStackBase
#include "cpu/residual_stack_kernels.h"
