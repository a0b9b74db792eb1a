// The kernels of the residual stack, written once over vec.h and compiled for each instruction set by the
// file that includes this. That file sets DEEPRES_LANES, DEEPRES_ROWS (rows of a register tile) and what
// operands.h asks for.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/operands.h"
#include "cpu/products.h"
#include "cpu/residual_stack.h"
#include "cpu/vec.h"

namespace deepres {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity(),
                kNaN = std::numeric_limits<float>::quiet_NaN();

// Columns that hold values, rounded up to whole vectors.
int64_t covered(const StackShape& shape) { return (shape.width + kLanes - 1) / kLanes * kLanes; }

LayerVectors vectors_of(const StackShape& shape, const StackRows& rows, int64_t layer) {
  const float* bias = rows.vectors + (layer - rows.first) * 3 * shape.padded;
  return {bias, bias + shape.padded, bias + 2 * shape.padded};
}

template <bool kSwish, bool kRough>
DEEPRES_INLINE Floats activated(Floats z) {
  if constexpr (kSwish) return z * sigmoid<kRough>(z);
  return z <= 0.0f ? Floats{} : z;  // NaN stays NaN
}

// Where column c of row `row` (of a row pair, for paired operands) lies in panels [padded / side, words,
// side].
template <int64_t kSide>
DEEPRES_INLINE int64_t in_panels(int64_t words, int64_t word, int64_t c) {
  return (c / kSide * words + word) * kSide + c % kSide;
}

// Two rows of values go into panels together: paired operands keep neighbouring rows in one word.
template <class O, int64_t kSide>
DEEPRES_INLINE void put_in_panels(float* panels, int64_t words, int64_t row, int64_t c, const Floats v[2]) {
  if constexpr (O::kPack == 2) {
    store(panels + in_panels<kSide>(words, row / 2, c), O::word(v[0], v[1]));
  } else {
    store(panels + in_panels<kSide>(words, row, c), O::word(v[0], v[0]));
    store(panels + in_panels<kSide>(words, row + 1, c), O::word(v[1], v[1]));
  }
}

// The residual stack with operands O, by the products of P.
template <class O, class P>
struct Stack {
  using Saved = typename O::Saved;
  static constexpr int64_t kPanel = P::kPanel;

  static int64_t width_words(const StackShape& shape) {
    return O::kPack == 1 ? shape.width : row_words(shape);
  }
  static int64_t row_words(const StackShape& shape) { return shape.padded / O::kPack; }
  static int64_t batch_words(const StackShape& shape) {
    return (shape.batch + kRowBlock - 1) / kRowBlock * kRowBlock / O::kPack;
  }

  static void pack(const StackShape& shape, const float* weight, bool transposed, int64_t part, float* packed,
                   float* work) {
    (transposed ? pack_transposed : pack_plain)(shape, weight, part, packed, work);
  }

  static void pack_plain(const StackShape& shape, const float* weight, int64_t part, float* packed,
                         float* work) {
    constexpr int64_t kWords = kPad / O::kPack;
    const int64_t width = shape.width, padded = shape.padded, words = width_words(shape);
    const float* zeros = work + work_size(shape) - padded;
    for (int64_t word = part * kWords; word < std::min((part + 1) * kWords, words); ++word) {
      const float* rows[2];
      for (int64_t i = 0; i < O::kPack; ++i) {
        const int64_t k = word * O::kPack + i;
        rows[i] = k < width ? weight + k * width : zeros;
        if (k < width && width != padded) {
          float* copy = work + i * padded;
          std::copy_n(rows[i], width, copy);
          std::fill(copy + width, copy + padded, 0.0f);
          rows[i] = copy;
        }
      }
      for (int64_t c = 0; c < padded; c += kPanel) {
        float* panel = packed + c * words + word * kPanel;
        for (int64_t j = 0; j < kPanel; j += kLanes) {
          store(panel + j, O::word(load(rows[0] + c + j), load(rows[O::kPack - 1] + c + j)));
        }
      }
    }
  }

  static void pack_transposed(const StackShape& shape, const float* weight, int64_t part, float* packed,
                              float* work) {
    const int64_t width = shape.width, padded = shape.padded, words = width_words(shape),
                  row_stride = row_words(shape);
    float *copy = work, *operands = work + padded;
    for (int64_t c = part * kPad; c < (part + 1) * kPad; c += kLanes) {
      float* panel = packed + c / kPanel * kPanel * words + c % kPanel;
      for (int64_t i = 0; i < kLanes; ++i) {
        const float* row = weight + (c + i) * width;
        if (width != padded) {
          const int64_t real = c + i < width ? width : 0;
          if (real) std::copy_n(row, real, copy);
          std::fill(copy + real, copy + padded, 0.0f);
          row = copy;
        }
        for (int64_t k = 0; k < padded; k += kLanes) O::put_row(operands + i * row_stride, k, load(row + k));
      }
      for (int64_t word = 0; word < words; word += kLanes) {
        Floats block[kLanes];
        DEEPRES_UNROLL
        for (int64_t i = 0; i < kLanes; ++i) block[i] = load(operands + i * row_stride + word);
        transpose(block);
        const int64_t count = std::min(kLanes, words - word);
        for (int64_t i = 0; i < count; ++i) store(panel + (word + i) * kPanel, block[i]);
      }
    }
  }

  static constexpr int64_t kGroup = 8;  // rows whose statistics are taken together: sums wait for each other

  // Of kGroup rows of u.
  static void statistics(const StackShape& shape, const float* u, float mean[kGroup], float rstd[kGroup]) {
    const int64_t width = shape.width, padded = shape.padded, whole = width / kLanes * kLanes;
    Floats sums[kGroup] = {}, squares[kGroup] = {};
    for (int64_t c = 0; c < width; c += kLanes) {
      DEEPRES_UNROLL
      for (int64_t i = 0; i < kGroup; ++i) sums[i] += load(u + i * padded + c);
    }
    for (int64_t i = 0; i < kGroup; ++i) mean[i] = sum(sums[i]) / float(width);
    for (int64_t c = 0; c < whole; c += kLanes) {
      DEEPRES_UNROLL
      for (int64_t i = 0; i < kGroup; ++i) {
        const Floats centred = load(u + i * padded + c) - mean[i];
        squares[i] += centred * centred;
      }
    }
    for (int64_t i = 0; i < kGroup && whole != width; ++i) {
      const Floats centred = keep(load(u + i * padded + whole) - mean[i], first_lanes(width - whole));
      squares[i] += centred * centred;
    }
    for (int64_t i = 0; i < kGroup; ++i) {
      const float variance = sum(squares[i]) / float(width);
      // Overflown, it would make n of 0: finite, and wrong. So the row becomes NaN, and shows.
      rstd[i] = variance < kInfinity ? 1.0f / std::sqrt(variance + shape.eps) : kNaN;
    }
  }

  // The layer's output: what activation makes of normalised values, and the block's input where a block ends.
  template <bool kSwish, bool kSkips>
  DEEPRES_INLINE static Floats output(const LayerVectors& vectors, int64_t c, Floats normal,
                                      const float* block) {
    const Floats y = activated<kSwish, O::kRough>(load(vectors.gamma + c) * normal + load(vectors.beta + c));
    return kSkips ? y + load(block + c) : y;
  }

  template <bool kSwish, bool kNorm, bool kSkips>
  static void forward_layer(const StackShape& shape, const ForwardRows& rows, int64_t layer, int64_t row,
                            int64_t count) {
    const int64_t padded = shape.padded, width = covered(shape), words = row_words(shape);
    const int64_t local = layer - rows.first, k = width_words(shape);
    const LayerVectors vectors = vectors_of(shape, rows, layer);
    const bool leaves = !shape.skip_every && layer + 1 == rows.last;  // a stretch's output in fp32
    P::product(shape, count, rows.a + row * words, words, rows.packed + local * padded * k, k, vectors.bias,
               0, rows.work);
    for (int64_t group = 0; group < count; group += kGroup) {
      float mean[kGroup] = {}, rstd[kGroup];
      std::fill_n(rstd, kGroup, 1.0f);
      if (kNorm) statistics(shape, rows.work + group * padded, mean, rstd);
      for (int64_t i = 0; i < std::min(kGroup, count - group); ++i) {
        const int64_t saved = local * shape.batch + row + group + i;
        Saved* n = rows.n ? static_cast<Saved*>(rows.n) + saved * padded : nullptr;
        if (n) {
          rows.rstd[saved] = rstd[i];
          std::fill(n + width, n + padded, Saved{});
        }
        const float* u = rows.work + (group + i) * padded;
        float *a = rows.a + (row + group + i) * words, *block = rows.block + (row + group + i) * padded;
        for (int64_t c = 0; c < width; c += kLanes) {
          const Floats normal = (load(u + c) - mean[i]) * rstd[i];
          if (n) O::store_saved(n + c, normal, kNorm);
          const Floats y = output<kSwish, kSkips>(vectors, c, normal, block);
          O::put_row(a, c, y);
          if (kSkips || leaves) store(block + c, y);
        }
      }
    }
  }

  template <bool kSwish, bool kNorm>
  static void forward_layers(const StackShape& shape, const ForwardRows& rows) {
    const int64_t padded = shape.padded, words = row_words(shape);
    const int64_t end = (rows.end + kRowBlock - 1) / kRowBlock * kRowBlock;
    for (int64_t row = rows.row; row < end && rows.enters; ++row) {
      for (int64_t c = 0; c < padded; c += kLanes) {
        O::put_row(rows.a + row * words, c, load(rows.block + row * padded + c));
      }
    }
    for (int64_t layer = rows.first; layer < rows.last; ++layer) {
      const bool skips = shape.skip_every && shape.ends_block(layer);
      const auto step = skips ? forward_layer<kSwish, kNorm, true> : forward_layer<kSwish, kNorm, false>;
      for (int64_t row = rows.row; row < rows.end; row += kRowBlock) {
        step(shape, rows, layer, row, std::min(kRowBlock, rows.end - row));
      }
    }
  }

  // The inputs of blocks, by the same additions as in the forward pass: where n was saved exactly, to the
  // same bits.
  template <bool kSwish, bool kNorm>
  static void rebuild_blocks(const StackShape& shape, const RebuildRows& rows) {
    const int64_t end = (rows.end + kRowBlock - 1) / kRowBlock * kRowBlock;
    for (int64_t row = rows.row; row < end; row += 2) rebuild_rows<kSwish, kNorm>(shape, rows, row);
  }

  template <bool kSwish, bool kNorm>
  static void rebuild_rows(const StackShape& shape, const RebuildRows& rows, int64_t row) {
    const int64_t padded = shape.padded, width = covered(shape), words = batch_words(shape);
    const int64_t every = shape.skip_every ? shape.skip_every : rows.last - rows.first;
    for (int64_t layer = rows.first; layer < rows.last; layer += every) {
      float* inputs = rows.inputs + (layer - rows.first) / every * padded * words;
      const LayerVectors vectors = vectors_of(shape, rows, layer == rows.first ? layer : layer - 1);
      for (int64_t c = 0; c < width; c += kLanes) {
        Floats block[2] = {};
        for (int64_t i = 0; i < 2 && row + i < rows.end; ++i) {
          float* kept = rows.work + i * padded + c;
          if (layer == rows.first) {
            block[i] = load(rows.stream + (row + i) * padded + c);
          } else {
            const int64_t saved = (layer - 1 - rows.first) * shape.batch + row + i;
            const Floats normal =
                O::load_saved(static_cast<const Saved*>(rows.n) + saved * padded + c, kNorm);
            block[i] = output<kSwish, true>(vectors, c, normal, kept - c);
          }
          store(kept, block[i]);
        }
        put_in_panels<O, P::kSide>(inputs, words, row, c, block);
      }
    }
  }

  static constexpr int64_t kAhead = 8;  // rows from the prefetch of a saved value to its use

  static constexpr int64_t kTogether = kLanes == 16 ? 4 : 2;  // rows of gradient_rows: registers hold them

  // From the gradient of the layer's output to du, of kTogether rows from `row` on; du goes to `work` as a
  // left operand and to panels, dbias, dgamma and dbeta grow. Rows from rows.end on count as zeros.
  template <bool kSwish, bool kNorm>
  static void gradient_rows(const StackShape& shape, const BackwardRows& rows, int64_t row, int64_t in_block,
                            float* sums) {
    const int64_t padded = shape.padded, width = covered(shape), words = batch_words(shape);
    const LayerVectors vectors = vectors_of(shape, rows, rows.first);
    const bool ends = shape.ends_block(rows.first);
    float *scratch = rows.work + work_size(shape) - (1 + kTogether) * padded,
          *zeros = scratch + kTogether * padded;
    const Saved* n[kTogether];
    const float* da[kTogether];
    float *dblock[kTogether], *operand[kTogether], rstd[kTogether] = {};
    for (int64_t i = 0; i < kTogether; ++i) {
      const bool real = row + i < rows.end;
      n[i] = real ? static_cast<const Saved*>(rows.n) + (row + i) * padded
                  : reinterpret_cast<const Saved*>(zeros);
      da[i] = real ? rows.da + (row + i) * padded : zeros;
      dblock[i] = rows.dblock + (row + i) * padded;
      operand[i] = rows.work + (in_block + i) * row_words(shape);
      if (real) rstd[i] = rows.rstd[row + i];
    }
    float *dbias = sums, *dgamma = dbias + padded, *dbeta = dgamma + padded;
    Floats total[kTogether] = {}, along[kTogether] = {};
    for (int64_t c = 0; c < width; c += kLanes) {
      const Floats gamma = load(vectors.gamma + c), beta = load(vectors.beta + c);
      Floats y[kTogether], scale{}, shift{};
      DEEPRES_UNROLL
      for (int64_t i = 0; i < kTogether; ++i) {
        const Floats dy = load(da[i] + c), normal = O::load_saved(n[i] + c, kNorm);
        __builtin_prefetch(n[i] + c + kAhead * padded);
        if (ends) store(dblock[i] + c, dy);
        const Floats z = gamma * normal + beta;
        Floats dz;
        if constexpr (kSwish) {
          const Floats s = sigmoid<O::kRough>(z);
          y[i] = z * s;
          dz = dy * (s + y[i] * (1.0f - s));
        } else {
          y[i] = activated<false, O::kRough>(z);
          dz = z <= 0.0f ? Floats{} : dy;
        }
        scale += dz * normal;
        shift += dz;
        dz = dz * gamma;
        total[i] += dz;
        along[i] += dz * normal;
        store(scratch + i * padded + c, dz);
      }
      store(dgamma + c, load(dgamma + c) + scale);
      store(dbeta + c, load(dbeta + c) + shift);
      for (int64_t i = 0; i < kTogether && rows.a; i += 2)
        put_in_panels<O, P::kSide>(rows.a, words, row + i, c, y + i);
    }
    float mean[kTogether] = {}, slope[kTogether] = {};  // times rstd
    for (int64_t i = 0; i < kTogether && kNorm; ++i) {
      mean[i] = sum(total[i]) / float(shape.width) * rstd[i];
      slope[i] = sum(along[i]) / float(shape.width) * rstd[i];
    }
    for (int64_t c = 0; c < width; c += kLanes) {
      Floats du[kTogether], shift{};
      DEEPRES_UNROLL
      for (int64_t i = 0; i < kTogether; ++i) {
        du[i] = load(scratch + i * padded + c) * rstd[i];
        if constexpr (kNorm) du[i] -= O::load_saved(n[i] + c, true) * slope[i] + mean[i];
        O::put_row(operand[i], c, du[i]);
        shift += du[i];
      }
      store(dbias + c, load(dbias + c) + shift);
      for (int64_t i = 0; i < kTogether && rows.du; i += 2)
        put_in_panels<O, P::kSide>(rows.du, words, row + i, c, du + i);
    }
    for (int64_t c = width; c < padded; c += kLanes) {  // the scratch of other steps lies here
      for (float* each : operand) O::put_row(each, c, Floats{});
    }
  }

  template <bool kSwish, bool kNorm>
  static void backward_block(const StackShape& shape, const BackwardRows& rows, int64_t row) {
    const int64_t padded = shape.padded;
    const bool joins = shape.skip_every && shape.opens_block(rows.first);
    const float* zeros = rows.work + 2 * kRowBlock * padded;
    float* sums = rows.sums + row / kRowBlock * 3 * padded;
    std::fill_n(sums, 3 * padded, 0.0f);
    // Panels want whole row blocks.
    const int64_t count = rows.du ? kRowBlock : std::min(kRowBlock, rows.end - row);
    for (int64_t i = 0; i < count; i += kTogether) {
      gradient_rows<kSwish, kNorm>(shape, rows, row + i, i, sums);
    }
    if (!rows.needs_input) return;
    P::product(shape, std::min(kRowBlock, rows.end - row), rows.work, row_words(shape), rows.packed,
               width_words(shape), joins ? rows.dblock + row * padded : zeros, joins ? padded : 0,
               rows.da + row * padded);
  }

  template <bool kSwish, bool kNorm>
  static void backward_layer(const StackShape& shape, const BackwardRows& rows) {
    for (int64_t row = rows.row; row < rows.end; row += kRowBlock) {
      backward_block<kSwish, kNorm>(shape, rows, row);
    }
  }

  // One of four instances, by the options that reach into inner loops.
  template <class Rows>
  using Step = void (*)(const StackShape&, const Rows&);

  template <class Rows>
  static void choose(const StackShape& shape, const Rows& rows, Step<Rows> swish_norm, Step<Rows> swish,
                     Step<Rows> norm, Step<Rows> neither) {
    (shape.swish ? (shape.norm ? swish_norm : swish) : (shape.norm ? norm : neither))(shape, rows);
  }

  static void forward(const StackShape& shape, const ForwardRows& rows) {
    choose(shape, rows, forward_layers<true, true>, forward_layers<true, false>, forward_layers<false, true>,
           forward_layers<false, false>);
  }

  static void rebuild(const StackShape& shape, const RebuildRows& rows) {
    choose(shape, rows, rebuild_blocks<true, true>, rebuild_blocks<true, false>, rebuild_blocks<false, true>,
           rebuild_blocks<false, false>);
  }

  static void backward(const StackShape& shape, const BackwardRows& rows) {
    choose(shape, rows, backward_layer<true, true>, backward_layer<true, false>, backward_layer<false, true>,
           backward_layer<false, false>);
  }

  static void weight_gradient(const StackShape& shape, const float* a, const float* du, int64_t panel,
                              float* dweight, float* work) {
    const int64_t width = shape.width, words = batch_words(shape),
                  rows = std::min(kPad, width - panel * kPad);
    P::outer(shape, a + panel * words * kPad, du, words, rows, work, dweight + panel * kPad * width);
  }

  static constexpr StackKernels table() {
    return {O::kPack, sizeof(Saved), P::kLeftBytes, pack, forward, rebuild, backward, weight_gradient};
  }
};

}  // namespace
}  // namespace deepres
