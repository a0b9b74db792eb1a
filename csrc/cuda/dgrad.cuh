// residual_stack, the chain of input gradients: one launch walks `layers` layers from the last to the first.
//
// n and rstd of a layer give its z, its output and its slope again, elementwise. The residual stream is
// walked back by subtracting each block's last output from it. What the weight gradients need (a layer's
// input, du) goes to memory in the operand's format, and is summed over rows by wgrad.cuh.
#pragma once

#include "tile.cuh"

namespace deepres {

// With 16 columns to a thread registers are short: addresses are computed anew in each layer, and beside a
// product in fp32 there is no room for the next gamma and beta, which come when they are used.
constexpr bool kWide = kOwned > 8;
constexpr bool kVectorsLate = kWide && DEEPRES_PRECISION == 32;

// What one layer left behind, asked for while the layer above is still computing.
struct Kept {
  RawTile<Saved> normalized;
  float rstd[2], gamma[kOwned], beta[kOwned];
};

struct DgradArguments {
  const float* dy;
  const float* y;
  const float* x;
  const float* gamma;
  const float* beta;
  const unsigned char* normalized;
  const float* rstd;
  float* dx;
  float* block_input;
  unsigned char* inputs;
  unsigned char* du;
  float* partials;
  i64 batch, layers, skip_every;

  DEEPRES_DEVICE void load(Kept& kept, i64 layer, const Lane& at) const {
    kept.normalized.load(normalized + layer * batch * kWidth * Saved::kBytes, batch, at);
    if constexpr (kNorm) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const i64 row = at.row + 8 * h;
        kept.rstd[h] = row < batch ? rstd[layer * batch + row] : 0.0f;
      }
      if constexpr (kVectorsLate) {
        ptx::prefetch(gamma + layer * kWidth + at.column);
        ptx::prefetch(beta + layer * kWidth + at.column);
      } else {
        load_vectors(kept, layer, at);
      }
    }
  }
  DEEPRES_DEVICE void load_vectors(Kept& kept, i64 layer, const Lane& at) const {
    load_vector(kept.gamma, gamma + layer * kWidth, at);
    load_vector(kept.beta, beta + layer * kWidth, at);
  }
};

// One step of `sum_columns`: lanes that differ in `mask` share out the `count` columns that both carry.
template <int count, int mask>
DEEPRES_DEVICE void share_columns(float (&carried)[kOwned], int& first, bool& mine, const Lane& at) {
  const bool upper = at.lane & mask;
  if constexpr (count > 1) {
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const float kept = upper ? carried[i + count / 2] : carried[i];
      carried[i] = kept + ptx::shuffle_xor(upper ? carried[i] : carried[i + count / 2], mask);
    }
    if (upper) first += count / 2;
  } else {
    carried[0] += ptx::shuffle_xor(carried[0], mask);
    mine &= !upper;
  }
}

// Sums over the block's 16 rows, to sums[W], of columns that each lane has added up over its own two. A
// butterfly over the 8 lanes that share columns: each step halves what a lane still carries, so 7 exchanges
// do for 8 columns.
DEEPRES_DEVICE void sum_columns(float* sums, float (&carried)[kOwned], const Lane& at) {
  int first = at.column;
  bool mine = true;
  share_columns<kOwned, 16>(carried, first, mine, at);
  share_columns<kOwned / 2, 8>(carried, first, mine, at);
  share_columns<kOwned / 4, 4>(carried, first, mine, at);
#pragma unroll
  for (int i = 0; i < (kOwned > 8 ? kOwned / 8 : 1); ++i)
    if (mine) sums[first + i] = carried[i];
}
DEEPRES_DEVICE void sum_columns(float* sums, const Tile& tile, const Lane& at) {
  float carried[kOwned];
#pragma unroll
  for (int i = 0; i < kOwned; ++i) carried[i] = tile[0][i] + tile[1][i];
  sum_columns(sums, carried, at);
}

// dn -> du = rstd (dn - mean(dn) - n mean(dn n)).
DEEPRES_DEVICE void normalize_gradient(Tile& dn, const Tile& n, const float (&rstd)[2], RowPairs& pairs,
                                       const Lane& at) {
  Pair mine[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Pair sum{0, 0};
#pragma unroll
    for (int i = 0; i < kOwned; ++i) {
      sum.first += dn[h][i];
      sum.second += dn[h][i] * n[h][i];
    }
    mine[h] = {sum_row(sum.first), sum_row(sum.second)};
  }
  pairs.exchange(mine, at);
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    Pair parts[kParts];
    pairs.get(h, parts, at);
    Pair mean{0, 0};
#pragma unroll
    for (int part = 0; part < kParts; ++part)
      mean.first += parts[part].first, mean.second += parts[part].second;
    mean.first *= 1.0f / kWidth, mean.second *= 1.0f / kWidth;
#pragma unroll
    for (int i = 0; i < kOwned; ++i) dn[h][i] = rstd[h] * (dn[h][i] - mean.first - n[h][i] * mean.second);
  }
}

DEEPRES_DEVICE void dgrad_rows(const DgradArguments& in, SharedMemory& shared, i64 block, Lane at) {
  const i64 blocks = ptx::block_count() / kCluster, padded = blocks * kRows;
  Tile d, d_block, stream;  // dL/d(layer output), dL/d(block output), the residual stream above the layer
  load_tile(d, in.dy, in.batch, at);
  load_tile(stream, in.y, in.batch, at);
  Kept kept;
  in.load(kept, in.layers - 1, at);
  int until_skip = 1;
  for (i64 layer = in.layers - 1; layer >= 0; --layer) {
    if constexpr (kWide) ptx::forget(at.row), ptx::forget(at.column);
    if constexpr (kNorm && kVectorsLate) in.load_vectors(kept, layer, at);
    Tile n;
    kept.normalized.decode(n);
    const bool ends_block = in.skip_every != 0 && --until_skip == 0;
    if (ends_block) until_skip = static_cast<int>(in.skip_every);
    // The layer above, if this launch has it, wants its input; rows past the batch are written too, for
    // wgrad.
    unsigned char* input_above = in.inputs == nullptr || layer + 1 == in.layers
                                     ? nullptr
                                     : in.inputs + (layer + 1) * padded * kWidth * Operand::kBytes;
    if (ends_block && input_above != nullptr) store_tile<Operand>(input_above, stream, kAllRows, at);

#pragma unroll
    for (int h = 0; h < 2; ++h) {
      float value[kOwned];  // this layer's output before the skip
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        const float z = kNorm ? kept.gamma[i] * n[h][i] + kept.beta[i] : n[h][i];
        float slope;
        activation(z, value[i], slope);
        if (ends_block) {
          d_block[h][i] = d[h][i];
          stream[h][i] -= value[i];
        }
        d[h][i] *= slope;
      }
      if (!ends_block && input_above != nullptr) store_row<Operand>(input_above, value, h, kAllRows, at);
    }

    float* sums = in.partials == nullptr ? nullptr : in.partials + (layer * blocks + block) * 3 * kWidth;
    if constexpr (kNorm) {
      if (sums != nullptr) {
        float scaled[kOwned];
#pragma unroll
        for (int i = 0; i < kOwned; ++i) scaled[i] = d[0][i] * n[0][i] + d[1][i] * n[1][i];
        sum_columns(sums + kWidth, scaled, at);
        sum_columns(sums + 2 * kWidth, d, at);
      }
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < kOwned; ++i) d[h][i] *= kept.gamma[i];
      normalize_gradient(d, n, kept.rstd, shared.pairs, at);
    } else {
      shared.pairs.exchange({}, at);
    }
    shared.left.exchange(d, at);
    if (sums != nullptr) sum_columns(sums, d, at);
    if (in.du != nullptr)
      store_tile<Operand>(in.du + layer * padded * kWidth * Operand::kBytes, d, kAllRows, at);

    if (layer > 0) in.load(kept, layer - 1, at);
    if (layer > 0 || in.dx != nullptr) shared.left.multiply(d, shared.ring, at);
    if (in.skip_every != 0 && until_skip == 1) {  // the block's first layer
#pragma unroll
      for (int h = 0; h < 2; ++h)
#pragma unroll
        for (int i = 0; i < kOwned; ++i) d[h][i] += d_block[h][i];
    }
  }
  if (in.dx != nullptr) store_tile<Float32>(in.dx, d, in.batch, at);
  if (in.inputs != nullptr) {
    if (in.x != nullptr) load_tile(stream, in.x, in.batch, at);
    store_tile<Operand>(in.inputs, stream, kAllRows, at);
  }
  if (in.block_input != nullptr) store_tile<Float32>(in.block_input, stream, in.batch, at);
}

// dy [batch, W], the gradient of the last layer's output, back through `layers` layers, whose weights lie
// packed for the transposed product. The first layer begins a block.
//
// Grid: batch / 16 rounded up, a cluster each; padded = 16 times that. Inputs: y [batch, W], the output of
// the last layer; x, the input of the first (null: found by walking back from y); normalized and rstd as
// forward left them. Outputs, each null where not wanted: dx [batch, W] (may be dy); block_input [batch, W],
// the first layer's input (may be y); inputs and du [layers, padded, W] in the operand's format, each layer's
// input and the gradient at its Dense; partials [layers, teams, 3, W], the team's share of dbias, dgamma and
// dbeta.
DEEPRES_CHAIN_KERNEL
residual_stack_dgrad(const float* dy, const float* y, const float* x, const unsigned char* packed,
                     const float* gamma, const float* beta, const unsigned char* normalized,
                     const float* rstd, float* dx, float* block_input, unsigned char* inputs,
                     unsigned char* du, float* partials, i64 batch, i64 layers, i64 skip_every, i64 stages) {
  const Lane at(ptx::thread_index(), ptx::block_index() / kCluster);
  SharedMemory shared(ptx::shared_memory(), static_cast<int>(stages), packed + (layers - 1) * kLayerBytes,
                      -kLayerBytes, layers - (dx == nullptr), at);
  const DgradArguments arguments{dy,          y,      x,  gamma,    beta,  normalized, rstd,      dx,
                                 block_input, inputs, du, partials, batch, layers,     skip_every};
  dgrad_rows(arguments, shared, ptx::block_index() / kCluster, at);
}

// partials [layers, blocks, 3, W] -> dbias, dgamma, dbeta [layers, W] (null where not wanted), blocks in
// order. Grid: (W / 64, layers * 3); 64 threads.
DEEPRES_KERNEL(64)
residual_stack_reduce(const float* partials, float* dbias, float* dgamma, float* dbeta, i64 blocks) {
  const i64 layer = ptx::block_index_y() / 3, which = ptx::block_index_y() % 3;
  float* out = which == 0 ? dbias : which == 1 ? dgamma : dbeta;
  if (out == nullptr) return;
  const i64 column = ptx::block_index() * 64 + ptx::thread_index();
  const float* part = partials + (layer * blocks * 3 + which) * kWidth + column;
  float sum = 0;
  for (i64 block = 0; block < blocks; ++block, part += 3 * kWidth) sum += *part;
  out[layer * kWidth + column] = sum;
}

}  // namespace deepres
