// residual_stack, the weight gradients: dweight[l] = inputs[l].T @ du[l], one grouped product over the layers
// of a stretch, each block a tile of one layer over all rows: no atomics, one order of summation.
#pragma once

#include "config.cuh"

namespace deepres {

constexpr int kGradTile = kWidth < 128 ? kWidth : 128;  // rows and columns of dweight in a block
constexpr int kGradThreads = 256;                       // 8 warps, 2 down by 4 across
constexpr int kGradDown = kGradTile / 2 / 16;           // 16-row tensor-core tiles of a warp
constexpr int kGradAcross = kGradTile / 4 / 8;          // 8-column ones
constexpr int kChunk = 16;                              // rows of inputs and du brought at a time
constexpr int kChunks = 4;                              // of them in flight

// A chunk [16, kGradTile] in shared memory; rows lie apart so that reading down columns hits all 32 banks.
constexpr int kChunkStride = kGradTile * Operand::kBytes + (Operand::kBytes == 2 ? 16 : 32);
constexpr int kChunkBytes = kChunk * kChunkStride;

DEEPRES_DEVICE void copy_chunk(unsigned char* to, const unsigned char* from, int thread) {
  constexpr int kVectors = kGradTile * Operand::kBytes / 16;  // of a row
  for (int v = thread; v < kChunk * kVectors; v += kGradThreads)
    ptx::copy_16(to + v / kVectors * kChunkStride + v % kVectors * 16,
                 from + static_cast<i64>(v / kVectors) * kWidth * Operand::kBytes + v % kVectors * 16);
}

// The tensor cores sum over rows, so both operands are read transposed: 16-bit ones by
// load_matrices_transposed over all 16 rows, 32-bit ones word by word over 8.
struct GradFragments {
  Operand::Left left[kGradDown];
  u32 right[kGradAcross][2];

  DEEPRES_DEVICE void load(const unsigned char* inputs, const unsigned char* du, int row, int lane) {
    const int group = lane / 4, c = lane % 4;
#pragma unroll
    for (int down = 0; down < kGradDown; ++down) {
      u32 words[4];
      if constexpr (Operand::kBytes == 2) {
        // Matrices: (rows 0-7, columns 0-7), (0-7, 8-15), (8-15, 0-7), (8-15, 8-15).
        const int r = lane % 8 + lane / 16 * 8, column = 16 * down + lane / 8 % 2 * 8;
        ptx::load_matrices_transposed(words, inputs + r * kChunkStride + column * 2);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i)
          words[i] = *reinterpret_cast<const u32*>(inputs + (row + c + i / 2 * 4) * kChunkStride +
                                                   (16 * down + group + i % 2 * 8) * 4);
      }
      Operand::left(words, left[down]);
    }
    if constexpr (Operand::kBytes == 2) {
#pragma unroll
      for (int across = 0; across < kGradAcross; across += 2) {
        // Matrices: (rows 0-7, columns 0-7), (8-15, 0-7), (0-7, 8-15), (8-15, 8-15).
        u32 words[4];
        ptx::load_matrices_transposed(words,
                                      du + lane % 16 * kChunkStride + (8 * across + lane / 16 * 8) * 2);
        right[across][0] = words[0], right[across][1] = words[1];
        right[across + 1][0] = words[2], right[across + 1][1] = words[3];
      }
    } else {
#pragma unroll
      for (int across = 0; across < kGradAcross; ++across)
#pragma unroll
        for (int i = 0; i < 2; ++i)
          right[across][i] =
              *reinterpret_cast<const u32*>(du + (row + c + 4 * i) * kChunkStride + (8 * across + group) * 4);
    }
  }
};

// inputs, du [layers, rows, W] in the operand's format, rows a multiple of 16 -> dweight [layers, W, W].
// Grid: ((W / kGradTile)^2 of each member, layers); 256 threads; shared memory 2 kChunks kChunkBytes. From
// one member to the next there are `layers` layers of inputs and du, `depth` of dweight.
DEEPRES_KERNEL(kGradThreads)
residual_stack_wgrad(const unsigned char* inputs, const unsigned char* du, float* dweight, i64 rows,
                     i64 layers, i64 depth) {
  constexpr int kTilesAcross = kWidth / kGradTile;
  const int thread = ptx::thread_index(), warp = thread / 32, lane = thread % 32;
  const i64 member = ptx::block_index() / (kTilesAcross * kTilesAcross);
  const int tile = ptx::block_index() % (kTilesAcross * kTilesAcross);
  const int tile_row = tile / kTilesAcross * kGradTile, tile_column = tile % kTilesAcross * kGradTile;
  const i64 layer = ptx::block_index_y(), row_bytes = kWidth * Operand::kBytes;
  inputs += (member * layers + layer) * rows * row_bytes + tile_row * Operand::kBytes;
  du += (member * layers + layer) * rows * row_bytes + tile_column * Operand::kBytes;

  unsigned char* memory = ptx::shared_memory();
  const int warp_row = warp / 4 * 16 * kGradDown, warp_column = warp % 4 * 8 * kGradAcross;
  const i64 chunks = rows / kChunk;
  const auto copy = [&](i64 chunk) {
    unsigned char* slot = memory + chunk % kChunks * 2 * kChunkBytes;
    if (chunk < chunks) {
      copy_chunk(slot, inputs + chunk * kChunk * row_bytes, thread);
      copy_chunk(slot + kChunkBytes, du + chunk * kChunk * row_bytes, thread);
    }
    ptx::commit_copies();  // an empty group past the end keeps the count
  };
  float sums[kGradDown][kGradAcross][4] = {};
  for (int chunk = 0; chunk < kChunks - 1; ++chunk) copy(chunk);
#pragma unroll 1
  for (i64 chunk = 0; chunk < chunks; ++chunk) {
    ptx::wait_copies<kChunks - 2>();
    ptx::sync_threads();  // the chunk is here for all, and all are done with the one before it
    copy(chunk + kChunks - 1);
    const unsigned char* slot = memory + chunk % kChunks * 2 * kChunkBytes;
#pragma unroll
    for (int row = 0; row < kChunk; row += 32 / Operand::kBytes) {
      GradFragments fragments;
      fragments.load(slot + warp_row * Operand::kBytes, slot + kChunkBytes + warp_column * Operand::kBytes,
                     row, lane);
#pragma unroll
      for (int down = 0; down < kGradDown; ++down)
#pragma unroll
        for (int across = 0; across < kGradAcross; ++across)
          Operand::multiply(sums[down][across], fragments.left[down], fragments.right[across][0],
                            fragments.right[across][1]);
    }
  }
  float* out = dweight + (member * depth + layer) * kWidth * kWidth;
#pragma unroll
  for (int down = 0; down < kGradDown; ++down)
#pragma unroll
    for (int across = 0; across < kGradAcross; ++across)
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int m = tile_row + warp_row + 16 * down + lane / 4 + 8 * half;
        const int n = tile_column + warp_column + 8 * across + 2 * (lane % 4);
        const u32 pair[2] = {ptx::bits(sums[down][across][2 * half]),
                             ptx::bits(sums[down][across][2 * half + 1])};
        store_words(out + m * kWidth + n, pair);
      }
}

}  // namespace deepres
