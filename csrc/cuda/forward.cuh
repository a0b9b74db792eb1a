// residual_stack, forward: one launch walks `layers` layers; kernels/residual_stack/op.py has the equations.
#pragma once

#include "form.cuh"

namespace deepres {

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
  for (int i = 0; i < kHeld * kOwned; ++i) block[i / kOwned][i % kOwned] = a[i / kOwned][i % kOwned];
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
    shared.left.multiply<false>(a, weights, shared.ring, at);
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) a[h][i] += vectors.bias[i];
    post_moments(a, shared.pairs, at);
    LeftRows::finish(shared.ring);
    const bool last = layer + 1 == in.layers;
    weights.load_half(shared.ring, !last);
    shared.pairs.wait();

    float rstd[kHeld];
    if constexpr (kNorm) normalize(a, rstd, in.eps, shared.pairs, at);
    RawTile<Saved> normalized;
    normalized.encode(a);
    const bool skip = --until_skip == 0;
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
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
        for (int h = 0; h < kHeld; ++h) {
          const i64 row = at.row_of(h);
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
// Grid: batch / kRows rounded up, a cluster each; members, whose stacks are apart: shapes here are of one.
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
                      member_of(packed, packed_held * kLayerBytes), kLayerBytes, layers, at, false);
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
