// What one build of these sources serves, and the geometry that follows from it.
//
// Set on the compiler's command line: DEEPRES_WIDTH (64, 128, 256, 512), DEEPRES_PRECISION (32 = fp32, 19 =
// tf32, 16 = fp16, 116 = bf16), DEEPRES_NORM (1: LayerNorm, 0: none), DEEPRES_SWISH (1: swish, 0: relu),
// DEEPRES_CLUSTER (blocks that share rows and split the columns: 1, 2 or 4; more than 1 takes sm_90),
// DEEPRES_SWAPPED (0: a team has 16 rows, the left operand of mma.sync; 16 or 32: so many, the right operand
// of wgmma, sm_90a alone: wgmma_tile.cuh).
#pragma once

#include "operand.cuh"

namespace deepres {

#if DEEPRES_PRECISION == 32
using Operand = SplitFloat32;
#elif DEEPRES_PRECISION == 19
using Operand = Tfloat32;
#elif DEEPRES_PRECISION == 16
using Operand = Float16;
#elif DEEPRES_PRECISION == 116
using Operand = Bfloat16;
#else
#error "DEEPRES_PRECISION must be 32, 19, 16 or 116"
#endif

constexpr bool kNorm = DEEPRES_NORM;
constexpr bool kSwish = DEEPRES_SWISH;

// What forward keeps of a layer, n: it is at most sqrt(width), so fp16 holds it with 11 bits. Without
// LayerNorm nothing bounds it.
template <bool half>
struct SavedFormat {
  using Type = Float32;
};
template <>
struct SavedFormat<true> {
  using Type = Float16;
};
using Saved = SavedFormat<kNorm && Operand::kBytes == 2>::Type;

constexpr int kWidth = DEEPRES_WIDTH;
constexpr int kCluster = DEEPRES_CLUSTER;
constexpr int kColumns = kWidth / kCluster;  // of a block
constexpr bool kSwapped = DEEPRES_SWAPPED;
constexpr int kRows = kSwapped ? DEEPRES_SWAPPED : 16;  // of a team
constexpr int kWarps = kColumns == 64 ? 4 : 8;
constexpr int kParts = kCluster * kWarps;  // warps of a team
constexpr int kThreads = 32 * kWarps;
constexpr int kTiles = kColumns / 8 / kWarps;                                // 8-column tiles of a warp
constexpr int kGroup = kTiles < Operand::kGroup ? kTiles : Operand::kGroup;  // of them at a time
constexpr int kOwned = kSwapped ? 2 : 2 * kTiles;  // consecutive columns of a thread,
constexpr int kHeld = kSwapped ? kRows / 4 : 2;    // on each of so many rows

// A slab of a warp's weights is 64 bytes of each of its columns along the sum: two tensor-core steps. A stage
// is as many slabs as one copy brings.
//
// Four warps are one to a scheduler: nothing else runs while it waits. So a stage is up to a layer, and it is
// read into registers early, while others' rows are on their way. In fp32 splitting the operands takes the
// registers, and the time.
constexpr int kSlabBytes = 512 * kTiles;
constexpr int kSlabs = kWidth * Operand::kBytes / 64;  // of a layer
constexpr bool kEarly = !kSwapped && kWarps == 4 && DEEPRES_PRECISION != 32;
constexpr bool kShort = kCluster > 1 && kWarps == 8 && Operand::kBytes == 4;  // of shared memory
constexpr int kCopyBytes = kCluster > 1 && kEarly ? 8192 : kShort ? 2048 : 4096;
constexpr int kStageSlabs = kSlabs * kSlabBytes < kCopyBytes ? kSlabs : kCopyBytes / kSlabBytes;
constexpr int kStageBytes = kStageSlabs * kSlabBytes;
constexpr int kStages = kSlabs / kStageSlabs;  // of a layer
constexpr int kLayerBytes = kParts * kStages * kStageBytes;

constexpr int kSets = kEarly ? 2 : 1;  // of sums, whose products do not wait for each other

#if DEEPRES_CLUSTER == 1
#define DEEPRES_CHAIN_KERNEL DEEPRES_KERNEL(kThreads)
#else
#define DEEPRES_CHAIN_KERNEL DEEPRES_CLUSTER_KERNEL(kThreads, kCluster)
#endif

}  // namespace deepres
