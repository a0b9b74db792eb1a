// Weights in the order in which the tensor cores take them, in the operand's format.
//
// packed [layer][part][slab][tile][lane][16 bytes]: what a lane needs of 8 columns (a tile of its warp,
// `part`) for the two steps of a slab lies together, so that a warp's weights are one stretch of memory and
// reading them hits no bank twice.
#pragma once

#include "config.cuh"

namespace deepres {

// weight [layers, W, W] -> packed, for a @ weight[l] or, transposed, for du @ weight[l].T. One thread a
// vector of 16 bytes; grid: enough threads for all of a member's, and members. From one member to the next
// there are `depth` layers of weight and `held` of packed.
DEEPRES_KERNEL(256)
residual_stack_pack(const float* weight, unsigned char* packed, i64 layers, i64 transposed, i64 depth,
                    i64 held) {
  constexpr i64 kVectors = kLayerBytes / 16;       // of a layer
  constexpr int kElements = 16 / Operand::kBytes;  // of a vector
  constexpr int kPerWord = 4 / Operand::kBytes;
  const i64 vector = ptx::block_index() * ptx::block_size() + ptx::thread_index();
  if (vector >= layers * kVectors) return;
  const int lane = vector % 32, group = lane / 4;
  const int tile = vector / 32 % kTiles, slab = vector / 32 / kTiles % kSlabs;
  const int part = vector % kVectors / (32 * kTiles * kSlabs);
  const i64 member = ptx::block_index_y();
  const float* source = weight + (member * depth + vector / kVectors) * kWidth * kWidth;

  // Column n = 2 c + e of the tensor cores' tile is what lane c of a row gets as element e: tile.cuh's
  // `column`.
  const int column = part * 8 * kTiles + group / 2 * kOwned + 2 * tile + group % 2;
  float values[kElements];
#pragma unroll
  for (int i = 0; i < kElements; ++i) {
    const int word = i / kPerWord;  // words 0, 1 serve the slab's first step, 2, 3 its second
    const int k = slab * 4 * kElements + (word * 4 + lane % 4) * kPerWord + i % kPerWord;
    values[i] = transposed ? source[column * kWidth + k] : source[k * kWidth + column];
  }
  u32 words[4];
  encode<Operand, kElements>(values, words);
  store_words(packed + member * held * kLayerBytes + vector * 16, words);
}

}  // namespace deepres
