// The residual stack for vectors of four: NEON, SSE2, or whatever the compiler makes of them.

#define DEEPRES_LANES 4
#define DEEPRES_ROWS 4
#include "cpu/residual_stack_kernels.h"

namespace deepres {
extern const StackKernels kStackBase[2] = {Stack<Fp32, VectorProducts<Fp32>>::table(),
                                           Stack<RoundedBf16, VectorProducts<RoundedBf16>>::table()};
}  // namespace deepres
