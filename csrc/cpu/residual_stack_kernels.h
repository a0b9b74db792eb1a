// The kernels of the residual stack, written once over vec.h and compiled for each instruction set by the
// file that includes this. That file sets DEEPRES_LANES, DEEPRES_ROWS (rows of a register tile) and
// DEEPRES_TABLE.

#include <algorithm>
#include <cmath>

#include "cpu/residual_stack.h"
#include "cpu/vec.h"

namespace deepres {
namespace {

constexpr int64_t kPanel = 2 * kLanes;   // columns of a register tile
constexpr int64_t kRows = DEEPRES_ROWS;  // rows of a register tile
static_assert(kPad % kPanel == 0 && kRowBlock % kRows == 0, "tiles must fit the padding");

int64_t vectors(const StackShape& shape) { return (shape.width + kLanes - 1) / kLanes; }

// c [kRows, kPanel] = a [kRows, k] @ panel [k, kPanel] + added. The sum comes first: small terms added one by
// one to a large value would each be rounded at its scale.
DEEPRES_INLINE void product_tile(const float* a, int64_t a_stride, const float* panel, int64_t k,
                                 const float* added, int64_t added_stride, float* c, int64_t c_stride) {
  Floats left[kRows] = {}, right[kRows] = {};
  for (int64_t j = 0; j < k; ++j, panel += kPanel) {
    const Floats b0 = load(panel), b1 = load(panel + kLanes);
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kRows; ++i) {
      const Floats scalar = splat(a[i * a_stride + j]);
      left[i] += scalar * b0;
      right[i] += scalar * b1;
    }
  }
  DEEPRES_UNROLL
  for (int64_t i = 0; i < kRows; ++i) {
    const float* plus = added + i * added_stride;
    store(c + i * c_stride, left[i] + load(plus));
    store(c + i * c_stride + kLanes, right[i] + load(plus + kLanes));
  }
}

// c [rows, width] = a [rows, width] @ packed weight + added; all row strides are `padded` but that of
// `added`.
void product(const StackShape& shape, int64_t rows, const float* a, const float* packed, const float* added,
             int64_t added_stride, float* c) {
  for (int64_t column = 0; column < shape.width; column += kPanel) {
    for (int64_t row = 0; row < rows; row += kRows) {
      product_tile(a + row * shape.padded, shape.padded, packed + column * shape.width, shape.width,
                   added + row * added_stride + column, added_stride, c + row * shape.padded + column,
                   shape.padded);
    }
  }
}

void pack(const StackShape& shape, const StackParameters& parameters, int64_t layer, bool transposed,
          float* packed) {
  const int64_t width = shape.width;
  const float* weight = parameters.weight + layer * width * width;
  for (int64_t column = 0; column < shape.padded; column += kPanel) {
    float* panel = packed + column * width;
    const int64_t real = std::clamp<int64_t>(width - column, 0, kPanel);
    for (int64_t k = 0; k < width; ++k, panel += kPanel) {
      if (transposed) {
        for (int64_t j = 0; j < real; ++j) panel[j] = weight[(column + j) * width + k];
      } else {
        std::copy_n(weight + k * width + column, real, panel);
      }
      std::fill(panel + real, panel + kPanel, 0.0f);
    }
  }
  float* vector = packed + shape.padded * width;
  for (const float* source : {parameters.bias, parameters.gamma, parameters.beta}) {
    const bool absent = !shape.norm && source != parameters.bias;
    for (int64_t j = 0; j < shape.padded; ++j) {
      vector[j] = j < width && !absent ? source[layer * width + j] : 0.0f;
    }
    vector += shape.padded;
  }
}

template <bool kSwish>
DEEPRES_INLINE Floats activated(Floats z) {
  if constexpr (kSwish) return z * sigmoid(z);
  return z <= 0.0f ? Floats{} : z;  // NaN stays NaN
}

// n = (u - mean) * rstd in place of u.
float normalise(const StackShape& shape, float* u) {
  const int64_t count = vectors(shape);
  Floats total{};
  for (int64_t v = 0; v < count; ++v) total += load(u + v * kLanes);
  const float mean = sum(total) / float(shape.width);
  const Ints tail = first_lanes(shape.width - (count - 1) * kLanes);
  Floats squares{};
  for (int64_t v = 0; v < count; ++v) {
    Floats centred = load(u + v * kLanes) - mean;
    if (v == count - 1) centred = keep(centred, tail);
    store(u + v * kLanes, centred);
    squares += centred * centred;
  }
  const float rstd = 1.0f / std::sqrt(sum(squares) / float(shape.width) + shape.eps);
  for (int64_t v = 0; v < count; ++v) store(u + v * kLanes, load(u + v * kLanes) * rstd);
  return rstd;
}

template <bool kSwish>
void forward_layer(const StackShape& shape, const ForwardRows& rows, int64_t layer, int64_t row,
                   int64_t count) {
  const int64_t padded = shape.padded, width = vectors(shape) * kLanes;
  const float* packed = rows.packed + (layer - rows.first) * shape.packed_size();
  const float *bias = packed + padded * shape.width, *gamma = bias + padded, *beta = gamma + padded;
  const bool ends = shape.ends_block(layer), skips = ends && shape.skip_every;
  product(shape, count, rows.a + row * padded, packed, bias, 0, rows.work);
  for (int64_t i = 0; i < count; ++i) {
    float *u = rows.work + i * padded, *a = rows.a + (row + i) * padded,
          *block = rows.block + (row + i) * padded;
    const int64_t saved = (layer - rows.first) * shape.batch + row + i;
    if (shape.norm) {
      const float rstd = normalise(shape, u);
      if (rows.n) rows.rstd[saved] = rstd;
    }
    if (rows.n) {
      std::copy_n(u, width, rows.n + saved * padded);
      std::fill_n(rows.n + saved * padded + width, padded - width, 0.0f);
    }
    for (int64_t c = 0; c < width; c += kLanes) {
      Floats z = load(u + c);
      if (shape.norm) z = load(gamma + c) * z + load(beta + c);
      Floats y = activated<kSwish>(z);
      if (skips) y += load(block + c);
      store(a + c, y);
      if (ends) store(block + c, y);
    }
  }
}

void forward(const StackShape& shape, const ForwardRows& rows) {
  for (int64_t layer = rows.first; layer < rows.last; ++layer) {
    for (int64_t row = rows.row; row < rows.end; row += kRowBlock) {
      const int64_t count = std::min(kRowBlock, rows.end - row);
      (shape.swish ? forward_layer<true> : forward_layer<false>)(shape, rows, layer, row, count);
    }
  }
}

// Where column c of a row lies in panels [padded / kPad][batch][kPad].
DEEPRES_INLINE int64_t in_panels(const StackShape& shape, int64_t row, int64_t c) {
  return (c / kPad * shape.batch + row) * kPad + c % kPad;
}

// The inputs of the stretch's blocks, by the same additions as in the forward pass, so to the same bits.
template <bool kSwish>
void rebuild_block_inputs(const StackShape& shape, const BackwardRows& rows, int64_t row, int64_t count) {
  const int64_t padded = shape.padded, width = vectors(shape) * kLanes;
  for (int64_t i = 0; i < count; ++i) {
    float* block = rows.work + i * padded;
    std::copy_n(rows.stream + (row + i) * padded, width, block);
    for (int64_t c = 0; c < width; c += kLanes) store(rows.a + in_panels(shape, row + i, c), load(block + c));
    if (!shape.skip_every) continue;
    for (int64_t layer = rows.first; layer + 1 < rows.last; ++layer) {
      if (!shape.ends_block(layer)) continue;
      const int64_t local = layer - rows.first;
      const float* gamma = rows.packed + local * shape.packed_size() + padded * shape.width + padded;
      const float *beta = gamma + padded, *n = rows.n + (local * shape.batch + row + i) * padded;
      float* a = rows.a + (local + 1) * shape.panels_size();
      for (int64_t c = 0; c < width; c += kLanes) {
        Floats z = load(n + c);
        if (shape.norm) z = load(gamma + c) * z + load(beta + c);
        const Floats y = activated<kSwish>(z) + load(block + c);
        store(block + c, y);
        store(a + in_panels(shape, row + i, c), y);
      }
    }
  }
}

// From da = gradient of the layer's output to du, left in work and in panels, and the column sums.
template <bool kSwish>
void gradient_rows(const StackShape& shape, const BackwardRows& rows, int64_t layer, int64_t row,
                   int64_t count) {
  const int64_t padded = shape.padded, width = vectors(shape) * kLanes, local = layer - rows.first;
  const float* gamma = rows.packed + local * shape.packed_size() + padded * shape.width + padded;
  const float* beta = gamma + padded;
  float* dbias = rows.sums + (row / kRowBlock * (rows.last - rows.first) + local) * 3 * padded;
  float *dgamma = dbias + padded, *dbeta = dgamma + padded;
  std::fill_n(dbias, 3 * padded, 0.0f);
  const bool ends = shape.ends_block(layer);
  // The layer's output is the next one's input; at a block's end rebuild_block_inputs has written it.
  const bool leaves = rows.a && layer + 1 < rows.last && !(ends && shape.skip_every);
  float* a = leaves ? rows.a + (local + 1) * shape.panels_size() : nullptr;
  float* panels = rows.du ? rows.du + local * shape.panels_size() : nullptr;
  for (int64_t i = 0; i < count; ++i) {
    const int64_t saved = local * shape.batch + row + i;
    const float *n = rows.n + saved * padded, *da = rows.da + (row + i) * padded;
    float *du = rows.work + i * padded, *dblock = rows.dblock + (row + i) * padded;
    Floats total{}, along{};
    for (int64_t c = 0; c < width; c += kLanes) {
      const Floats dy = load(da + c), nc = load(n + c);
      if (ends) store(dblock + c, dy);
      const Floats z = shape.norm ? load(gamma + c) * nc + load(beta + c) : nc;
      Floats y, dz;
      if constexpr (kSwish) {
        const Floats s = sigmoid(z);
        y = z * s;
        dz = dy * (s * (1.0f + z * (1.0f - s)));
      } else {
        y = activated<false>(z);
        dz = z <= 0.0f ? Floats{} : dy;
      }
      if (leaves) store(a + in_panels(shape, row + i, c), y);
      if (shape.norm) {
        store(dgamma + c, load(dgamma + c) + dz * nc);
        store(dbeta + c, load(dbeta + c) + dz);
        dz = dz * load(gamma + c);
        total += dz;
        along += dz * nc;
      }
      store(du + c, dz);
    }
    const float mean = sum(total) / float(shape.width), slope = sum(along) / float(shape.width);
    const float rstd = shape.norm ? rows.rstd[saved] : 1.0f;
    for (int64_t c = 0; c < width; c += kLanes) {
      Floats d = load(du + c);
      if (shape.norm) d = (d - mean - load(n + c) * slope) * rstd;
      store(du + c, d);
      store(dbias + c, load(dbias + c) + d);
      if (panels) store(panels + in_panels(shape, row + i, c), d);
    }
  }
}

template <bool kSwish>
void backward_rows(const StackShape& shape, const BackwardRows& rows) {
  const int64_t padded = shape.padded;
  const float* zeros = rows.work + kRowBlock * padded;
  for (int64_t row = rows.row; row < rows.end && rows.a; row += kRowBlock) {
    rebuild_block_inputs<kSwish>(shape, rows, row, std::min(kRowBlock, rows.end - row));
  }
  for (int64_t layer = rows.last - 1; layer >= rows.first; --layer) {
    const float* packed = rows.packed + (layer - rows.first) * shape.packed_size();
    const bool joins = shape.skip_every && shape.opens_block(layer);
    for (int64_t row = rows.row; row < rows.end; row += kRowBlock) {
      const int64_t count = std::min(kRowBlock, rows.end - row);
      gradient_rows<kSwish>(shape, rows, layer, row, count);
      if (layer == rows.first && !rows.needs_input) continue;
      product(shape, count, rows.work, packed, joins ? rows.dblock + row * padded : zeros, joins ? padded : 0,
              rows.da + row * padded);
    }
  }
}

void backward(const StackShape& shape, const BackwardRows& rows) {
  (shape.swish ? backward_rows<true> : backward_rows<false>)(shape, rows);
}

constexpr int64_t kDweightRows = 8;     // rows of a register tile of dweight
constexpr int64_t kDweightBatch = 128;  // rows of the batch whose panels stay in L1 together

// c [kDweightRows, kPanel] += a [batch, kDweightRows]^T du [batch, kPanel], both with rows of kPad.
DEEPRES_INLINE void dweight_tile(const float* a, const float* du, int64_t batch, float* c) {
  Floats left[kDweightRows] = {}, right[kDweightRows] = {};
  for (int64_t row = 0; row < batch; ++row, a += kPad, du += kPad) {
    const Floats b0 = load(du), b1 = load(du + kLanes);
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kDweightRows; ++i) {
      const Floats scalar = splat(a[i]);
      left[i] += scalar * b0;
      right[i] += scalar * b1;
    }
  }
  DEEPRES_UNROLL
  for (int64_t i = 0; i < kDweightRows; ++i) {
    store(c + i * kPad, load(c + i * kPad) + left[i]);
    store(c + i * kPad + kLanes, load(c + i * kPad + kLanes) + right[i]);
  }
}

void weight_gradient(const StackShape& shape, const float* a, const float* du, int64_t panel,
                     float* dweight) {
  const int64_t batch = shape.batch, width = shape.width;
  const int64_t rows = std::min(kPad, width - panel * kPad);
  for (int64_t column = 0; column < width; column += kPad) {
    alignas(64) float c[kPad * kPad] = {};
    for (int64_t row = 0; row < batch; row += kDweightBatch) {
      const int64_t count = std::min(kDweightBatch, batch - row);
      for (int64_t i = 0; i < kPad; i += kDweightRows) {
        for (int64_t j = 0; j < kPad; j += kPanel) {
          dweight_tile(a + (panel * batch + row) * kPad + i, du + (column / kPad * batch + row) * kPad + j,
                       count, c + i * kPad + j);
        }
      }
    }
    for (int64_t i = 0; i < rows; ++i) {
      std::copy_n(c + i * kPad, std::min(kPad, width - column),
                  dweight + (panel * kPad + i) * width + column);
    }
  }
}

}  // namespace

extern const StackKernels DEEPRES_TABLE = {pack, forward, backward, weight_gradient};

}  // namespace deepres
