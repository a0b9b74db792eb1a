// residual_stack, forward: one launch walks `layers` layers; kernels/residual_stack/op.py has the equations.
#pragma once

#include "tile.cuh"

namespace deepres {

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
    rstd[h] = ptx::reciprocal_sqrt(sums[2 * h + 1] * (1.0f / kWidth) - shift * shift + eps);
#pragma unroll
    for (int i = 0; i < kOwned; ++i) u[h][i] = (u[h][i] - mean) * rstd[h];
  }
}

struct ForwardArguments {
  const float* x;
  const float* bias;
  const float* gamma;
  const float* beta;
  float* y;
  unsigned char* normalized;
  float* rstd;
  float* kept;
  i64 batch, layers, skip_every, segment;
  float eps;
};

// Of one layer, asked for while the rows of the layer below are on their way.
struct Vectors {
  float bias[kOwned], gamma[kOwned], beta[kOwned];

  DEEPRES_DEVICE void load(const ForwardArguments& in, i64 layer, const Lane& at) {
    load_vector(bias, in.bias + layer * kWidth, at);
    if constexpr (kNorm) {
      load_vector(gamma, in.gamma + layer * kWidth, at);
      load_vector(beta, in.beta + layer * kWidth, at);
    }
  }
};

// Layer by layer: product, normalize, activation, skip, and back to shared memory. Between sending to the
// other warps and waiting for them stands what needs nobody.
DEEPRES_DEVICE void forward_rows(const ForwardArguments& in, SharedMemory& shared, const Lane& at) {
  Tile a, block;
  load_tile(a, in.x, in.batch, at);
#pragma unroll
  for (int i = 0; i < 2 * kOwned; ++i) block[i / kOwned][i % kOwned] = a[i / kOwned][i % kOwned];
  Vectors vectors;
  EarlyWeights weights;
  shared.left.post(a, at);
  vectors.load(in, 0, at);
  weights.load_half(shared.ring, true);
  weights.load_rest();
  shared.left.wait();
  i64 until_skip = in.skip_every, until_kept = in.segment;
  float* kept = in.kept;
  for (i64 layer = 0; layer < in.layers; ++layer) {
    shared.left.multiply(a, weights, shared.ring, at);
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) a[h][i] += vectors.bias[i];
    post_moments(a, shared.pairs, at);
    LeftRows::finish(shared.ring);
    const bool last = layer + 1 == in.layers;
    weights.load_half(shared.ring, !last);
    shared.pairs.wait();

    float rstd[2];
    if constexpr (kNorm) normalize(a, rstd, in.eps, shared.pairs, at);
    RawTile<Saved> normalized;
    normalized.encode(a);
    const bool skip = --until_skip == 0;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        a[h][i] = activation(kNorm ? vectors.gamma[i] * a[h][i] + vectors.beta[i] : a[h][i]);
        if (skip) block[h][i] = a[h][i] += block[h][i];
      }
    if (skip) until_skip = in.skip_every;
    shared.left.post(a, at);

    vectors.load(in, last ? layer : layer + 1, at);
    if (in.normalized != nullptr) {
      normalized.store(in.normalized + layer * in.batch * kWidth * Saved::kBytes, in.batch, at);
      if constexpr (kNorm) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const i64 row = at.row + 8 * h;
          if (at.column == 0 && row < in.batch) in.rstd[layer * in.batch + row] = rstd[h];
        }
      }
    }
    if (--until_kept == 0) {
      until_kept = in.segment;
      if (!last) store_tile<Float32>(kept, a, in.batch, at);
      kept += in.batch * kWidth;
    }
    weights.load_rest();
    shared.left.wait();
  }
  if (in.y != nullptr) store_tile<Float32>(in.y, a, in.batch, at);
}

// x [batch, W] through `layers` layers, whose weights lie packed for the forward product.
//
// Grid: batch / 16 rounded up, a cluster each; members, whose stacks are apart: shapes here are of one.
// Outputs, each null where not wanted: y [batch, W] (may be x itself); normalized [layers, batch, W] in
// `Saved` and rstd [layers, batch], what backward needs; kept [.., batch, W], the input of every `segment`-th
// layer but the first (segment 0: none). skip_every 0: no skips. From one member to the next there are
// `depth` layers of bias, gamma and beta, packed_held of packed, normalized_held of normalized and rstd;
// x_held, y_held and kept_held times [batch, W] of x, y and kept.
DEEPRES_CHAIN_KERNEL
residual_stack_forward(const float* x, const unsigned char* packed, const float* bias, const float* gamma,
                       const float* beta, float* y, unsigned char* normalized, float* rstd, float* kept,
                       i64 batch, i64 layers, i64 skip_every, i64 segment, double eps, i64 stages, i64 depth,
                       i64 packed_held, i64 x_held, i64 y_held, i64 kept_held, i64 normalized_held) {
  const Lane at(ptx::thread_index(), ptx::block_index() / kCluster);
  SharedMemory shared(ptx::shared_memory(), static_cast<int>(stages),
                      member_of(packed, packed_held * kLayerBytes), kLayerBytes, layers, at);
  const i64 rows = batch * kWidth, vectors = depth * kWidth;
  const ForwardArguments arguments{member_of(x, x_held * rows),
                                   member_of(bias, vectors),
                                   member_of(gamma, vectors),
                                   member_of(beta, vectors),
                                   member_of(y, y_held * rows),
                                   member_of(normalized, normalized_held * rows * Saved::kBytes),
                                   member_of(rstd, normalized_held * batch),
                                   member_of(kept, kept_held * rows),
                                   batch,
                                   layers,
                                   skip_every,
                                   segment,
                                   static_cast<float>(eps)};
  forward_rows(arguments, shared, at);
}

}  // namespace deepres
