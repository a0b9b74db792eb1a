// A team's rows in flight: what a lane holds of them, to and from global memory, and the activation.
#pragma once

#include "team.cuh"

namespace deepres {

// Elements of a lane: [row][owned column]; the rows are `Lane::row_of`, the columns neighbours from `column`
// on.
using Tile = float[kHeld][kOwned];

// --- Rows in global memory: matrix [batch, kWidth]; rows past the batch read as 0 and are never written. ---

constexpr i64 kAllRows = 1ll << 62;  // the `batch` of a matrix that has the rows of whole tiles

template <class Format>
struct RawTile {  // a tile as it lies in memory, so that a load can be under way while others compute
  static constexpr int kWords = kOwned * Format::kBytes / 4;
  u32 words[kHeld][kWords];

  DEEPRES_DEVICE void load(const void* matrix, i64 batch, const Lane& at) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) {
      const i64 row = at.row_of(h);
      if (row < batch) {
        const i64 element = row * kWidth + at.column;
        load_words<kWords>(words[h], static_cast<const unsigned char*>(matrix) + element * Format::kBytes);
      } else {
#pragma unroll
        for (int i = 0; i < kWords; ++i) words[h][i] = 0;
      }
    }
  }
  DEEPRES_DEVICE void decode(Tile& tile) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) deepres::decode<Format, kOwned>(words[h], tile[h]);
  }
  DEEPRES_DEVICE void encode(const Tile& tile) {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) deepres::encode<Format, kOwned>(tile[h], words[h]);
  }
  DEEPRES_DEVICE void store(void* matrix, i64 batch, const Lane& at) const {
#pragma unroll
    for (int h = 0; h < kHeld; ++h) store_row(matrix, h, batch, at);
  }
  DEEPRES_DEVICE void store_row(void* matrix, int h, i64 batch, const Lane& at) const {
    const i64 row = at.row_of(h);
    if (row >= batch) return;
    const i64 element = row * kWidth + at.column;
    store_words(static_cast<unsigned char*>(matrix) + element * Format::kBytes, words[h]);
  }
};

DEEPRES_DEVICE void load_tile(Tile& tile, const float* matrix, i64 batch, const Lane& at) {
  RawTile<Float32> raw;
  raw.load(matrix, batch, at);
  raw.decode(tile);
}

template <class Format>
DEEPRES_DEVICE void store_tile(void* matrix, const Tile& tile, i64 batch, const Lane& at) {
  RawTile<Format> raw;
  raw.encode(tile);
  raw.store(matrix, batch, at);
}

// A lane's columns of one layer's vector [kWidth].
DEEPRES_DEVICE void load_vector(float (&values)[kOwned], const float* vector, const Lane& at) {
  u32 words[kOwned];
  load_words<kOwned>(words, vector + at.column);
  decode<Float32, kOwned>(words, values);
}

struct Pair {
  float first, second;
};

// 1 / sqrt(variance + eps), and NaN of a variance that overflowed: 0 would make n of 0, finite and wrong.
DEEPRES_DEVICE float reciprocal_deviation(float variance, float eps) {
  return ptx::reciprocal_sqrt(variance + eps) + 0.0f * variance;
}

// --- The activation: value = f(z), slope = f'(z) ---

DEEPRES_DEVICE float sigmoid(float z) { return ptx::reciprocal(1.0f + ptx::exp2(-1.4426950408889634f * z)); }

DEEPRES_DEVICE float activation(float z) {
  if constexpr (kSwish) return z * sigmoid(z);
  return z < 0.0f ? 0.0f : z;  // NaN stays NaN
}
DEEPRES_DEVICE void activation(float z, float& value, float& slope) {
  if constexpr (kSwish) {
    const float s = sigmoid(z);
    value = z * s;
    slope = s * (1.0f + z * (1.0f - s));
  } else {
    value = z < 0.0f ? 0.0f : z;
    slope = z > 0.0f ? 1.0f : 0.0f;
  }
}

}  // namespace deepres
