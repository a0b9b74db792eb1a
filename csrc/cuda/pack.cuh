// Weights in the order in which the tensor cores take them, in the operand's format.
//
// packed [layer][part][slab][tile][lane][16 bytes]: what a lane needs of 8 columns (a tile of its warp,
// `part`) for the two steps of a slab lies together, so that a warp's weights are one stretch of memory and
// reading them hits no bank twice.
//
// Where operands are swapped [layer][out / 64][in / 64][in / 8 % 8][out / 8 % 8][in % 8][out % 8]: core
// matrices of warpgroup products (wgmma_tile.cuh), which read them along either dimension, so one order
// serves both ways.
#pragma once

#include "config.cuh"

namespace deepres {

constexpr int kPackedElements = 16 / Operand::kBytes;  // of a vector

// Vector `vector` of a layer whose weights are `source` [W, W].
DEEPRES_DEVICE void gather(float (&values)[kPackedElements], const float* source, int vector,
                           bool transposed) {
  constexpr int kPerWord = 4 / Operand::kBytes;
  const int lane = vector % 32, group = lane / 4;
  const int tile = vector / 32 % kTiles, slab = vector / 32 / kTiles % kSlabs;
  const int part = vector / (32 * kTiles * kSlabs);

  // Column n = 2 c + e of the tensor cores' tile is what lane c of a row gets as element e: tile.cuh's
  // `column`.
  const int column = part * 8 * kTiles + group / 2 * kOwned + 2 * tile + group % 2;
#pragma unroll
  for (int i = 0; i < kPackedElements; ++i) {
    const int word = i / kPerWord;  // words 0, 1 serve the slab's first step, 2, 3 its second
    const int k = slab * 4 * kPackedElements + (word * 4 + lane % 4) * kPerWord + i % kPerWord;
    values[i] = transposed ? source[column * kWidth + k] : source[k * kWidth + column];
  }
}
// The same where operands are swapped: 8 outs of one in.
DEEPRES_DEVICE void gather_square(float (&values)[kPackedElements], const float* source, int vector) {
  // Columns are counted in the order 0, 2, .. 14, 1, 3, .. 15 of each 16: at `place` lies column
  const auto column = [](int place) { return place / 16 * 16 + place % 8 * 2 + place / 8 % 2; };
  constexpr int kSide = kWidth / 64;
  const int in = vector / 512 % kSide * 64 + vector / 64 % 8 * 8 + vector % 8;
  const int out = vector / 512 / kSide * 64 + vector / 8 % 8 * 8;
#pragma unroll
  for (int i = 0; i < kPackedElements; ++i) values[i] = source[column(in) * kWidth + column(out + i)];
}

// weight [layers, W, W] -> packed, for a @ weight[l] or, transposed, for du @ weight[l].T. One thread a
// vector of 16 bytes; grid: enough threads for all of a member's, and members. From one member to the next
// there are `depth` layers of weight and `held` of packed.
DEEPRES_KERNEL(256)
residual_stack_pack(const float* weight, unsigned char* packed, i64 layers, i64 transposed, i64 depth,
                    i64 held) {
  constexpr i64 kVectors = kWidth * kWidth / kPackedElements;  // of a layer
  const i64 vector = ptx::block_index() * ptx::block_size() + ptx::thread_index();
  if (vector >= layers * kVectors) return;
  const i64 member = ptx::block_index_y();
  const float* source = weight + (member * depth + vector / kVectors) * kWidth * kWidth;
  float values[kPackedElements];
  if constexpr (kSwapped)
    gather_square(values, source, vector % kVectors);
  else
    gather(values, source, vector % kVectors, transposed);
  u32 words[4];
  encode<Operand, kPackedElements>(values, words);
  store_words(packed + member * held * kLayerBytes + vector * 16, words);
}

}  // namespace deepres
