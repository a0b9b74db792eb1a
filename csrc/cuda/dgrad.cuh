// residual_stack, the chain of input gradients: one launch walks `layers` layers from the last to the first.
//
// n and rstd of a layer give its z, its output and its slope again, elementwise. The residual stream is
// walked back by subtracting each block's last output from it. What the weight gradients need (a layer's
// input, du) goes to memory in the operand's format, and is summed over rows by wgrad.cuh.
#pragma once

#include "form.cuh"

namespace deepres {

// With 16 columns to a thread, or 8 in fp32, registers are short: addresses are computed anew in each layer.
// With 16 in fp32 there is no room for the next gamma and beta, which come when they are used.
constexpr bool kWide = kOwned > 8 || (kOwned == 8 && DEEPRES_PRECISION == 32);
constexpr bool kVectorsLate = kOwned > 8 && DEEPRES_PRECISION == 32;
constexpr int kTogether =
    kSwapped ? kHeld : 1;  // rows whose activations are found side by side, for registers too

// What one layer left behind, asked for while the layer above is still computing.
struct Kept {
  RawTile<Saved> normalized;
  float rstd[kHeld], gamma[kOwned], beta[kOwned];
};

// Of the first member, but for dy and y, which are of the block's.
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
  i64 batch, layers, skip_every, depth, x_held, normalized_held;

  // Where a layer of the block's member stands among all members', of whom each has `held`: found when it is
  // wanted, for registers are full.
  DEEPRES_DEVICE static i64 slot(i64 layer, i64 held) { return ptx::block_index_y() * held + layer; }

  DEEPRES_DEVICE void load(Kept& kept, i64 layer, const Lane& at) const {
    const i64 saved = slot(layer, normalized_held) * batch;
    kept.normalized.load(normalized + saved * kWidth * Saved::kBytes, batch, at);
    if constexpr (kNorm) {
#pragma unroll
      for (int h = 0; h < kHeld; ++h) {
        const i64 row = at.row_of(h);
        kept.rstd[h] = row < batch ? rstd[saved + row] : 0.0f;
      }
      if constexpr (kVectorsLate) {
        ptx::prefetch(gamma + slot(layer, depth) * kWidth + at.column);
        ptx::prefetch(beta + slot(layer, depth) * kWidth + at.column);
      } else {
        load_vectors(kept, layer, at);
      }
    }
  }
  DEEPRES_DEVICE void load_vectors(Kept& kept, i64 layer, const Lane& at) const {
    load_vector(kept.gamma, gamma + slot(layer, depth) * kWidth, at);
    load_vector(kept.beta, beta + slot(layer, depth) * kWidth, at);
  }
};

// One step of `sum_columns`: lanes that differ in `mask` share out the `count` columns that both carry.
template <int count, int mask, int sets>
DEEPRES_DEVICE void share_columns(float (&carried)[sets][kOwned], int& first, bool& mine, const Lane& at) {
  const bool upper = at.lane & mask;
#pragma unroll
  for (int set = 0; set < sets; ++set) {
    if constexpr (count > 1) {
#pragma unroll
      for (int i = 0; i < count / 2; ++i) {
        const float kept = upper ? carried[set][i + count / 2] : carried[set][i];
        const float given = upper ? carried[set][i] : carried[set][i + count / 2];
        carried[set][i] = kept + ptx::shuffle_xor(given, mask);
      }
    } else {
      carried[set][0] += ptx::shuffle_xor(carried[set][0], mask);
    }
  }
  if constexpr (count > 1) {
    if (upper) first += count / 2;
  } else {
    mine &= !upper;
  }
}

// Sums over the team's rows, to sums [sets, W], of columns that each lane has added up over its own rows. A
// butterfly over the 8 lanes (4 where operands are swapped) that share columns: each step halves what a lane
// still carries, so 7 exchanges do for 8 columns. Sets go together, so that none waits for another's
// shuffles.
template <int sets>
DEEPRES_DEVICE void sum_columns(float* sums, float (&carried)[sets][kOwned], const Lane& at) {
  int first = at.column;
  bool mine = true;
  if constexpr (kSwapped) {
    share_columns<2, 2>(carried, first, mine, at);
    share_columns<1, 1>(carried, first, mine, at);
  } else {
    share_columns<kOwned, 16>(carried, first, mine, at);
    share_columns<kOwned / 2, 8>(carried, first, mine, at);
    share_columns<kOwned / 4, 4>(carried, first, mine, at);
  }
  if (!mine) return;
#pragma unroll
  for (int set = 0; set < sets; ++set)
#pragma unroll
    for (int i = 0; i < (kOwned > 8 ? kOwned / 8 : 1); ++i) sums[set * kWidth + first + i] = carried[set][i];
}
DEEPRES_DEVICE void add_rows(float (&sum)[kOwned], const Tile& tile) {
#pragma unroll
  for (int i = 0; i < kOwned; ++i) {
    sum[i] = tile[0][i];
#pragma unroll
    for (int h = 1; h < kHeld; ++h) sum[i] += tile[h][i];
  }
}
DEEPRES_DEVICE void add_rows(float (&sum)[kOwned], const Tile& left, const Tile& right) {
#pragma unroll
  for (int i = 0; i < kOwned; ++i) {
    sum[i] = left[0][i] * right[0][i];
#pragma unroll
    for (int h = 1; h < kHeld; ++h) sum[i] += left[h][i] * right[h][i];
  }
}

// Of one layer, all that does not depend on what comes from above.
struct Slopes {
  Tile n, slope;
  float gamma[kOwned], rstd[kHeld];

  // stream: the residual stream, the output of the layer if it ends a block; below the block after this. The
  // output goes to `output`, if that is not null, as the input of the layer above; rows past the batch too,
  // for wgrad.
  DEEPRES_DEVICE void find(const Kept& kept, bool ends_block, Tile& stream, unsigned char* output,
                           const Lane& at) {
    kept.normalized.decode(n);
    RawTile<Operand> above;
#pragma unroll
    for (int first = 0; first < kHeld; first += kTogether) {
      float values[kTogether][kOwned];  // before the skip
      if (ends_block) {
#pragma unroll
        for (int h = 0; h < kTogether; ++h)
          encode<Operand, kOwned>(stream[first + h], above.words[first + h]);
      }
#pragma unroll
      for (int h = 0; h < kTogether; ++h)
#pragma unroll
        for (int i = 0; i < kOwned; ++i) {
          activation(kNorm ? kept.gamma[i] * n[first + h][i] + kept.beta[i] : n[first + h][i], values[h][i],
                     slope[first + h][i]);
          if (ends_block) stream[first + h][i] -= values[h][i];
        }
      if (!ends_block) {
#pragma unroll
        for (int h = 0; h < kTogether; ++h) encode<Operand, kOwned>(values[h], above.words[first + h]);
      }
      if (output != nullptr) {
#pragma unroll
        for (int h = 0; h < kTogether; ++h) above.store_row(output, first + h, kAllRows, at);
      }
    }
    if constexpr (kNorm) {
#pragma unroll
      for (int i = 0; i < kOwned; ++i) gamma[i] = kept.gamma[i];
#pragma unroll
      for (int h = 0; h < kHeld; ++h) rstd[h] = kept.rstd[h];
    }
  }
};

// From the last layer to the first. Between sending to the other warps and waiting for them stands what needs
// nobody: there the slopes of the layer below are found, from what was asked for a layer before. Where
// registers are short each layer's are found when it comes.
DEEPRES_DEVICE void dgrad_rows(const DgradArguments& in, SharedMemory& shared, i64 block, Lane at) {
  const auto slot = [&](i64 layer) { return in.slot(layer, in.layers); };
  int blocks = static_cast<int>(ptx::block_count() / kCluster);
  const auto operand = [&](unsigned char* tensor, i64 layer) {  // the layer's of inputs or du
    return tensor + slot(layer) * blocks * (kRows * kWidth * Operand::kBytes);
  };
  Tile d, d_block, stream;  // dL/d(layer output), dL/d(block output), the residual stream above the layer
  load_tile(d, in.dy, in.batch, at);
  load_tile(stream, in.y, in.batch, at);
  Kept kept;
  in.load(kept, in.layers - 1, at);
  EarlyWeights weights;
  Slopes slopes;
  bool ends_block = in.skip_every != 0;
  int until_skip = static_cast<int>(in.skip_every);
  const auto find = [&](Slopes& found, i64 layer) {
    const bool wanted = in.inputs != nullptr && layer >= 0 && layer + 1 != in.layers;
    found.find(kept, ends_block && layer >= 0, stream, wanted ? operand(in.inputs, layer + 1) : nullptr, at);
    if constexpr (!kWide) in.load(kept, layer > 0 ? layer - 1 : 0, at);
  };
  if constexpr (!kWide) find(slopes, in.layers - 1);
  for (i64 layer = in.layers - 1; layer >= 0; --layer) {
    if constexpr (kWide) {
      ptx::forget(at.row), ptx::forget(at.column), ptx::forget(blocks);
      if constexpr (kNorm && kVectorsLate) in.load_vectors(kept, layer, at);
      find(slopes, layer);
    }
    float* sums =
        in.partials == nullptr ? nullptr : in.partials + (slot(layer) * blocks + block) * 3 * kWidth;
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
#pragma unroll
      for (int i = 0; i < kOwned; ++i) {
        if (ends_block) d_block[h][i] = d[h][i];
        d[h][i] *= slopes.slope[h][i];
      }
    float columns[3][kOwned];  // of du, dz n and dz, for dbias, dgamma and dbeta
    if constexpr (kNorm) {
      if constexpr (kWide) {
        if (sums != nullptr) {
          float few[1][kOwned];
          add_rows(few[0], d, slopes.n);
          sum_columns(sums + kWidth, few, at);
          add_rows(few[0], d);
          sum_columns(sums + 2 * kWidth, few, at);
        }
      } else {
        add_rows(columns[1], d, slopes.n);
        add_rows(columns[2], d);
      }
#pragma unroll
      for (int h = 0; h < kHeld; ++h)
#pragma unroll
        for (int i = 0; i < kOwned; ++i) d[h][i] *= slopes.gamma[i];
    }
    post_sums(d, slopes.n, shared.pairs, at);

    const bool begins_block = in.skip_every != 0 && --until_skip == 0;
    ends_block = begins_block;  // the layer below
    if (begins_block) until_skip = static_cast<int>(in.skip_every);
    const bool multiplies = layer > 0 || in.dx != nullptr;
    if (layer + 1 < in.layers) LeftRows::finish(shared.ring);  // of the product that made d
    weights.load_half(shared.ring, multiplies);
    weights.load_rest();
    Slopes below;
    if constexpr (!kWide) find(below, layer - 1);
    shared.pairs.wait();
    if constexpr (kNorm) normalize_gradient(d, slopes.n, slopes.rstd, shared.pairs, at);
    shared.left.post(d, at);

    if (in.du != nullptr) store_tile<Operand>(operand(in.du, layer), d, kAllRows, at);
    if (sums != nullptr) {
      add_rows(columns[0], d);
      if constexpr (kWide || !kNorm) {
        float few[1][kOwned];
        add_rows(few[0], d);
        sum_columns(sums, few, at);
      } else {
        sum_columns(sums, columns, at);
      }
    }
    if (layer > 0 && kWide) in.load(kept, layer - 1, at);
    if constexpr (!kWide) slopes = below;
    shared.left.wait();

    if (multiplies) shared.left.multiply<true>(d, weights, shared.ring, at);
    if (begins_block) {
#pragma unroll
      for (int h = 0; h < kHeld; ++h)
#pragma unroll
        for (int i = 0; i < kOwned; ++i) d[h][i] += d_block[h][i];
    }
  }
  // Found here, not kept through the layers: registers are full there.
  const i64 rows = in.batch * kWidth;
  if (in.dx != nullptr) store_tile<Float32>(member_of(in.dx, rows), d, in.batch, at);
  if (in.inputs != nullptr) {
    if (in.x != nullptr) load_tile(stream, member_of(in.x, in.x_held * rows), in.batch, at);
    store_tile<Operand>(operand(in.inputs, 0), stream, kAllRows, at);
  }
  if (in.block_input != nullptr) store_tile<Float32>(member_of(in.block_input, rows), stream, in.batch, at);
}

// dy [batch, W], the gradient of the last layer's output, back through `layers` layers, whose weights lie
// packed for the transposed product. The first layer begins a block.
//
// Grid: batch / kRows rounded up, a cluster each; members, whose stacks are apart: shapes here are of one.
// padded = kRows times the clusters. Inputs: y [batch, W], the output of the last layer; x, the input of the
// first (null: found by walking back from y); normalized and rstd as forward left them. Outputs, each null
// where not wanted: dx [batch, W] (may be dy); block_input [batch, W], the first layer's input (may be y);
// inputs and du [layers, padded, W] in the operand's format, each layer's input and the gradient at its
// Dense; partials [layers, teams, 3, W], the team's share of dbias, dgamma and dbeta. From one member to the
// next there are `depth` layers of gamma and beta, packed_held of packed, normalized_held of normalized and
// rstd; x_held and y_held times [batch, W] of x and y; of the others one, or `layers`.
DEEPRES_CHAIN_KERNEL
residual_stack_dgrad(const float* dy, const float* y, const float* x, const unsigned char* packed,
                     const float* gamma, const float* beta, const unsigned char* normalized,
                     const float* rstd, float* dx, float* block_input, unsigned char* inputs,
                     unsigned char* du, float* partials, i64 batch, i64 layers, i64 skip_every, i64 stages,
                     i64 depth, i64 packed_held, i64 x_held, i64 y_held, i64 normalized_held) {
  const i64 team = ptx::block_index() / kCluster;
  const Lane at(ptx::thread_index(), team);
  const unsigned char* last = packed + (layers - 1) * kLayerBytes;
  SharedMemory shared(ptx::shared_memory(), static_cast<int>(stages),
                      member_of(last, packed_held * kLayerBytes), -kLayerBytes, layers - (dx == nullptr), at,
                      true);
  const i64 rows = batch * kWidth;
  const DgradArguments arguments{member_of(dy, rows),
                                 member_of(y, y_held * rows),
                                 x,
                                 gamma,
                                 beta,
                                 normalized,
                                 rstd,
                                 dx,
                                 block_input,
                                 inputs,
                                 du,
                                 partials,
                                 batch,
                                 layers,
                                 skip_every,
                                 depth,
                                 x_held,
                                 normalized_held};
  dgrad_rows(arguments, shared, team, at);
}

// partials [layers, blocks, 3, W] -> dbias, dgamma, dbeta [layers, W] (null where not wanted), blocks in
// order. Grid: (W / 64 of each member, layers * 3); 64 threads. From one member to the next there are
// `layers` layers of partials, `depth` of the others.
DEEPRES_KERNEL(64)
residual_stack_reduce(const float* partials, float* dbias, float* dgamma, float* dbeta, i64 blocks,
                      i64 layers, i64 depth) {
  const i64 layer = ptx::block_index_y() / 3, which = ptx::block_index_y() % 3;
  float* out = which == 0 ? dbias : which == 1 ? dgamma : dbeta;
  if (out == nullptr) return;
  const i64 member = ptx::block_index() / (kWidth / 64);
  const i64 column = ptx::block_index() % (kWidth / 64) * 64 + ptx::thread_index();
  const float* part = partials + ((member * layers + layer) * blocks * 3 + which) * kWidth + column;
  float sum = 0;
  for (i64 block = 0; block < blocks; ++block, part += 3 * kWidth) sum += *part;
  out[(member * depth + layer) * kWidth + column] = sum;
}

}  // namespace deepres
