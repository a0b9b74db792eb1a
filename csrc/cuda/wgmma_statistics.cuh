// LayerNorm's statistics where warpgroups multiply: a lane has two columns of kHeld rows, and 8 lanes have
// the 16 columns of their warp.
#pragma once

#include "wgmma_tile.cuh"

namespace deepres {

constexpr float kShare = 16;  // columns of a warp

// One step of `post_rows`: lanes that differ in `mask` share out the `count` rows that both carry.
template <int count, int mask, bool moments>
DEEPRES_DEVICE void share_rows(Pair (&carried)[kHeld], int& first, bool& mine, const Lane& at) {
  constexpr float kEach = 32 / mask;  // columns that either side has added up
  const bool upper = at.lane & mask;
#pragma unroll
  for (int h = 0; h < (count + 1) / 2; ++h) {
    const Pair low = carried[h], high = carried[h + count / 2];
    const Pair kept = upper ? high : low, given = upper ? low : high;
    const Pair other = {ptx::shuffle_xor(given.first, mask), ptx::shuffle_xor(given.second, mask)};
    carried[h] = {kept.first + other.first, kept.second + other.second};
    if constexpr (moments) {  // as Chan, Golub and LeVeque (1979) join them
      const float apart = kept.first - other.first;
      carried[h].second += apart * apart * (0.5f / kEach);
    }
  }
  if constexpr (count > 1) {
    if (upper) first += count / 2;
  } else {
    mine &= !upper;
  }
}

// To all: two sums over the warp's columns, by rows, of what each lane carries of its two. `moments`: a sum
// and the squares about its mean; the mean is posted.
template <bool moments>
DEEPRES_DEVICE void post_rows(Pair (&carried)[kHeld], RowPairs& pairs, const Lane& at) {
  int first = 0;
  bool mine = true;
  share_rows<kHeld, 16, moments>(carried, first, mine, at);
  share_rows<kHeld / 2, 8, moments>(carried, first, mine, at);
  share_rows<kHeld / 4, 4, moments>(carried, first, mine, at);
  if constexpr (moments) carried[0].first *= 1.0f / kShare;
  if (mine) pairs.post(at.row_of(first) % kRows, carried[0], at);
}

// To all: mean and sum of squares about it of the warp's columns, by rows. Without LayerNorm what is sent
// only has to depend on the product: it tells that the left rows were read.
DEEPRES_DEVICE void post_moments(const Tile& u, RowPairs& pairs, const Lane& at) {
  Pair carried[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const float apart = u[h][0] - u[h][1];
    carried[h] = {u[h][0] + u[h][1], 0.5f * apart * apart};
  }
  post_rows<kNorm>(carried, pairs, at);
}

// A lane's share of a row's pairs has become `first` and `second` of the row; those of the lane's own rows.
DEEPRES_DEVICE void hand_out(float (&firsts)[kHeld], float (&seconds)[kHeld], const Pair& found,
                             const Lane& at) {
#pragma unroll
  for (int h = 0; h < kHeld; ++h) {
    const int from = at.row_of(h) % kRows * RowPairs::kSharers;
    firsts[h] = ptx::shuffle(found.first, from), seconds[h] = ptx::shuffle(found.second, from);
  }
}

// Over the lanes that share a row's pairs.
DEEPRES_DEVICE Pair sum_sharers(Pair own) {
  if constexpr (RowPairs::kSharers == 2)
    own = {own.first + ptx::shuffle_xor(own.first, 1), own.second + ptx::shuffle_xor(own.second, 1)};
  return own;
}

// u -> n = (u - mean) rstd by rows; returns rstd of the lane's rows. The warps' parts are joined about the
// first part's mean: no cancellation, whatever the mean.
DEEPRES_DEVICE void normalize(Tile& u, float (&rstd)[kHeld], float eps, const RowPairs& pairs,
                              const Lane& at) {
  Pair parts[RowPairs::kShares], sums = {};  // of shifts, of squares
  const float about = pairs.first(at);
  pairs.get(parts, at);
#pragma unroll
  for (const Pair& part : parts) {
    const float shift = part.first - about;
    sums.first += shift;
    sums.second += kShare * shift * shift + part.second;
  }
  sums = sum_sharers(sums);
  const float shift = sums.first * (1.0f / kParts);
  const float variance = sums.second * (1.0f / kWidth) - shift * shift;
  float mean[kHeld];
  hand_out(mean, rstd, {about + shift, reciprocal_deviation(variance, eps)}, at);
#pragma unroll
  for (int h = 0; h < kHeld; ++h)
#pragma unroll
    for (int i = 0; i < kOwned; ++i) u[h][i] = (u[h][i] - mean[h]) * rstd[h];
}

// To all: the sums of dn and dn n over the warp's columns, by rows. Without LayerNorm what is sent only has
// to depend on the product that made dn: it tells that the left rows were read.
DEEPRES_DEVICE void post_sums(const Tile& dn, const Tile& n, RowPairs& pairs, const Lane& at) {
  Pair carried[kHeld];
#pragma unroll
  for (int h = 0; h < kHeld; ++h) carried[h] = {dn[h][0] + dn[h][1], dn[h][0] * n[h][0] + dn[h][1] * n[h][1]};
  post_rows<false>(carried, pairs, at);
}

// dn -> du = rstd (dn - mean(dn) - n mean(dn n)).
DEEPRES_DEVICE void normalize_gradient(Tile& dn, const Tile& n, const float (&rstd)[kHeld],
                                       const RowPairs& pairs, const Lane& at) {
  Pair parts[RowPairs::kShares], sums = {};
  pairs.get(parts, at);
#pragma unroll
  for (const Pair& part : parts) sums.first += part.first, sums.second += part.second;
  sums = sum_sharers(sums);
  float mean[kHeld], along[kHeld];
  hand_out(mean, along, {sums.first * (1.0f / kWidth), sums.second * (1.0f / kWidth)}, at);
#pragma unroll
  for (int h = 0; h < kHeld; ++h)
#pragma unroll
    for (int i = 0; i < kOwned; ++i) dn[h][i] = rstd[h] * (dn[h][i] - mean[h] - n[h][i] * along[h]);
}

}  // namespace deepres
