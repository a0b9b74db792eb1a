// LayerNorm's statistics, whose rows the four lanes of a row and all warps of the team have in parts.
#pragma once

#include "tile.cuh"

namespace deepres {

// Each value becomes its sum over the four lanes of a row; together, so that none waits for another's
// shuffles.
template <int count>
DEEPRES_DEVICE void sum_row(float (&values)[count]) {
#pragma unroll
  for (int mask = 1; mask <= 2; mask *= 2) {
    float others[count];
#pragma unroll
    for (int i = 0; i < count; ++i) others[i] = ptx::shuffle_xor(values[i], mask);
#pragma unroll
    for (int i = 0; i < count; ++i) values[i] += others[i];
  }
}

constexpr float kShare = 8 * kTiles;  // columns of a warp

// To all: mean and sum of squares about it of the warp's columns, by rows. Without LayerNorm what is sent
// only has to depend on the product: it tells that the left rows were read.
DEEPRES_DEVICE void post_moments(const Tile& u, RowPairs& pairs, const Lane& at) {
  Pair mine[2];
  if constexpr (!kNorm) {
#pragma unroll
    for (int h = 0; h < 2; ++h) mine[h] = {u[h][0], u[h][kOwned - 1]};
    return pairs.post(mine, at);
  }
  float means[2] = {}, squares[2] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (int i = 0; i < kOwned; ++i) means[h] += u[h][i];
  sum_row(means);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    means[h] *= 1.0f / kShare;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) squares[h] += (u[h][i] - means[h]) * (u[h][i] - means[h]);
  }
  sum_row(squares);
  mine[0] = {means[0], squares[0]}, mine[1] = {means[1], squares[1]};
  pairs.post(mine, at);
}

// u -> n = (u - mean) rstd by rows; returns rstd of the lane's two rows. The warps' parts are joined as Chan,
// Golub and LeVeque (1979) do, about the first part's mean: no cancellation, whatever the mean. The four
// lanes of a row share the parts.
DEEPRES_DEVICE void normalize(Tile& u, float (&rstd)[2], float eps, const RowPairs& pairs, const Lane& at) {
  Pair parts[2][RowPairs::kQuarter];
  float about[2], sums[4] = {};  // of shifts, of squares, for both rows
#pragma unroll
  for (int h = 0; h < 2; ++h) about[h] = pairs.first(h, at), pairs.get(h, parts[h], at);
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (const Pair& part : parts[h]) {
      const float shift = part.first - about[h];
      sums[2 * h] += shift;
      sums[2 * h + 1] += kShare * shift * shift + part.second;
    }
  sum_row(sums);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float shift = sums[2 * h] * (1.0f / kParts), mean = about[h] + shift;
    rstd[h] = reciprocal_deviation(sums[2 * h + 1] * (1.0f / kWidth) - shift * shift, eps);
#pragma unroll
    for (int i = 0; i < kOwned; ++i) u[h][i] = (u[h][i] - mean) * rstd[h];
  }
}

// To all: the sums of dn and dn n over the warp's columns, by rows. Without LayerNorm what is sent only has
// to depend on the product that made dn: it tells that the left rows were read.
DEEPRES_DEVICE void post_sums(const Tile& dn, const Tile& n, RowPairs& pairs, const Lane& at) {
  Pair mine[2];
  if constexpr (kNorm) {
    float sums[4] = {};
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        sums[2 * h] += dn[h][i];
        sums[2 * h + 1] += dn[h][i] * n[h][i];
      }
    sum_row(sums);
    mine[0] = {sums[0], sums[1]}, mine[1] = {sums[2], sums[3]};
  } else {
    mine[0] = {dn[0][0], dn[0][kOwned - 1]}, mine[1] = {dn[1][0], dn[1][kOwned - 1]};
  }
  pairs.post(mine, at);
}

// dn -> du = rstd (dn - mean(dn) - n mean(dn n)).
DEEPRES_DEVICE void normalize_gradient(Tile& dn, const Tile& n, const float (&rstd)[2], const RowPairs& pairs,
                                       const Lane& at) {
  Pair parts[2][RowPairs::kQuarter];
  float means[4] = {};
#pragma unroll
  for (int h = 0; h < 2; ++h) pairs.get(h, parts[h], at);
#pragma unroll
  for (int h = 0; h < 2; ++h)
#pragma unroll
    for (const Pair& part : parts[h]) means[2 * h] += part.first, means[2 * h + 1] += part.second;
  sum_row(means);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const float mean = means[2 * h] * (1.0f / kWidth), along = means[2 * h + 1] * (1.0f / kWidth);
#pragma unroll
    for (int i = 0; i < kOwned; ++i) dn[h][i] = rstd[h] * (dn[h][i] - mean - n[h][i] * along);
  }
}

}  // namespace deepres
