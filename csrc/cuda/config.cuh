// What one build of these sources serves, and the geometry that follows from it.
//
// Set on the compiler's command line: DEEPRES_WIDTH (64, 128, 256, 512), DEEPRES_PRECISION (32 = fp32, 19 =
// tf32, 16 = fp16, 116 = bf16), DEEPRES_NORM (1: LayerNorm, 0: none), DEEPRES_SWISH (1: swish, 0: relu).
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
constexpr int kRows = 16;  // of a block: one tensor-core tile high
constexpr int kWarps = kWidth == 64 ? 4 : 8;
constexpr int kThreads = 32 * kWarps;
constexpr int kTiles = kWidth / 8 / kWarps;  // 8-column tiles of a warp
constexpr int kOwned = 2 * kTiles;           // consecutive columns of a thread, on each of its two rows

// A slab of a warp's weights is 64 bytes of each of its columns along the sum: two tensor-core steps. A stage
// is as many slabs as one copy brings.
constexpr int kSlabBytes = 512 * kTiles;
constexpr int kSlabs = kWidth * Operand::kBytes / 64;  // of a layer
constexpr int kStageSlabs = kWidth == 512 ? 1 : 2;
constexpr int kStageBytes = kStageSlabs * kSlabBytes;
constexpr int kStages = kSlabs / kStageSlabs;  // of a layer
constexpr int kLayerBytes = kWarps * kStages * kStageBytes;

}  // namespace deepres
