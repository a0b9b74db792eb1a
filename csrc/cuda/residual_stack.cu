// The residual stack on NVIDIA GPUs, sm_80 and newer: every kernel of one width, precision, norm and
// activation. No header beyond these is needed; kernels/residual_stack/cuda.py compiles and launches them.

#include "dgrad.cuh"
#include "forward.cuh"
#include "pack.cuh"
#include "wgrad.cuh"

namespace deepres {

// The host computed these for the launches.
static_assert(kThreads == DEEPRES_THREADS, "threads of a chain kernel");
static_assert(SharedMemory::kPerStage == DEEPRES_STAGE_BYTES, "shared memory of a stage");
static_assert(SharedMemory::kFixed == DEEPRES_FIXED_BYTES, "shared memory beside the ring");
static_assert(2 * kChunks * kChunkBytes == DEEPRES_WGRAD_BYTES, "shared memory of wgrad");

}  // namespace deepres
