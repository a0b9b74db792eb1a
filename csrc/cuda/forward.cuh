// residual_stack, forward: one launch walks `layers` layers; kernels/residual_stack/op.py has the equations.
#pragma once

#include "tile.cuh"

namespace deepres {

// u -> n = (u - mean) rstd by rows; returns rstd of the lane's two rows. Each warp centres on its own mean
// first, and the parts are joined as Chan, Golub and LeVeque (1979) do: no cancellation, whatever the mean.
DEEPRES_DEVICE void normalize(Tile& u, float (&rstd)[2], float eps, RowPairs& pairs, const Lane& at) {
  constexpr float kShare = 8 * kTiles;  // columns of a warp
  Pair mine[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) sum += u[h][i];
    const float mean = sum_row(sum) * (1.0f / kShare);
    float squares = 0;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) squares += (u[h][i] - mean) * (u[h][i] - mean);
    mine[h] = {mean, sum_row(squares)};
  }
  pairs.exchange(mine, at);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Pair parts[kParts];
    pairs.get(h, parts, at);
    float mean = 0, squares = 0;
#pragma unroll
    for (int part = 0; part < kParts; ++part) mean += parts[part].first;
    mean *= 1.0f / kParts;
#pragma unroll
    for (int part = 0; part < kParts; ++part) {
      const float shift = parts[part].first - mean;
      squares += parts[part].second + kShare * shift * shift;
    }
    rstd[h] = ptx::reciprocal_sqrt(squares * (1.0f / kWidth) + eps);
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

// Layer by layer: product, normalize, activation, skip, and back to shared memory.
DEEPRES_DEVICE void forward_rows(const ForwardArguments& in, SharedMemory& shared, const Lane& at) {
  Tile a, block;
  load_tile(a, in.x, in.batch, at);
#pragma unroll
  for (int i = 0; i < 2 * kOwned; ++i) block[i / kOwned][i % kOwned] = a[i / kOwned][i % kOwned];
  shared.left.exchange(a, at);
  i64 until_skip = in.skip_every, until_kept = in.segment;
  for (i64 layer = 0; layer < in.layers; ++layer) {
    float bias[kOwned], gamma[kOwned], beta[kOwned];  // asked for before the product hides their latency
    load_vector(bias, in.bias + layer * kWidth, at);
    if constexpr (kNorm) {
      load_vector(gamma, in.gamma + layer * kWidth, at);
      load_vector(beta, in.beta + layer * kWidth, at);
    }
    shared.left.multiply(a, shared.ring, at);
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) a[h][i] += bias[i];

    float rstd[2];
    if constexpr (kNorm)
      normalize(a, rstd, in.eps, shared.pairs, at);
    else
      shared.pairs.exchange({}, at);
    if (in.normalized != nullptr) {
      store_tile<Saved>(in.normalized + layer * in.batch * kWidth * Saved::kBytes, a, in.batch, at);
      if constexpr (kNorm) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          const i64 row = at.row + 8 * h;
          if (at.column == 0 && row < in.batch) in.rstd[layer * in.batch + row] = rstd[h];
        }
      }
    }
    const bool skip = --until_skip == 0;
#pragma unroll
    for (int h = 0; h < 2; ++h)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        a[h][i] = activation(kNorm ? gamma[i] * a[h][i] + beta[i] : a[h][i]);
        if (skip) block[h][i] = a[h][i] += block[h][i];
      }
    if (skip) until_skip = in.skip_every;
    shared.left.exchange(a, at);
    if (--until_kept == 0) {
      until_kept = in.segment;
      const i64 slot = (layer + 1) / in.segment - 1;
      if (layer + 1 < in.layers) store_tile<Float32>(in.kept + slot * in.batch * kWidth, a, in.batch, at);
    }
  }
  if (in.y != nullptr) store_tile<Float32>(in.y, a, in.batch, at);
}

// x [batch, W] through `layers` layers, whose weights lie packed for the forward product.
//
// Grid: batch / 16 rounded up, a cluster each. Outputs, each null where not wanted: y [batch, W] (may be x
// itself); normalized [layers, batch, W] in `Saved` and rstd [layers, batch], what backward needs;
// kept [.., batch, W], the input of every `segment`-th layer but the first (segment 0: none).
// skip_every 0: no skips.
DEEPRES_CHAIN_KERNEL
residual_stack_forward(const float* x, const unsigned char* packed, const float* bias, const float* gamma,
                       const float* beta, float* y, unsigned char* normalized, float* rstd, float* kept,
                       i64 batch, i64 layers, i64 skip_every, i64 segment, double eps, i64 stages) {
  const Lane at(ptx::thread_index(), ptx::block_index() / kCluster);
  SharedMemory shared(ptx::shared_memory(), static_cast<int>(stages), packed, kLayerBytes, layers, at);
  const ForwardArguments arguments{x,
                                   bias,
                                   gamma,
                                   beta,
                                   y,
                                   normalized,
                                   rstd,
                                   kept,
                                   batch,
                                   layers,
                                   skip_every,
                                   segment,
                                   static_cast<float>(eps)};
  forward_rows(arguments, shared, at);
}

}  // namespace deepres
