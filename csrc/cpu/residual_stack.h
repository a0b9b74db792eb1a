// The residual stack on the CPU: what the driver (residual_stack.cpp) and the kernels of each instruction set
// share.
//
// A stretch is a run of layers. For each stretch the driver lets the threads pack its weights, then walk
// their own rows through all its layers, and (backward) turn what the rows left behind into weight gradients:
//
//   forward    pack W -> rows: [product, statistics, activation, skip] per layer
//   backward   pack W^T -> rows: [dz, du, product with W^T] per layer, leaving a and du -> dW = a^T du,
//   column sums
//
// Inside, the width is padded to `padded`; padded columns hold zeros throughout and statistics run over
// `width`.

#pragma once

#include <cstdint>

namespace deepres {

constexpr int64_t kPad = 32;       // columns are padded to a multiple of this: the widest panel of any kernel
constexpr int64_t kRowBlock = 32;  // rows whose column sums are added up together, whatever the threads

struct StackShape {
  int64_t batch, width, padded, depth, skip_every;
  bool norm, swish;
  float eps;

  bool opens_block(int64_t layer) const { return skip_every ? layer % skip_every == 0 : layer == 0; }
  bool ends_block(int64_t layer) const {
    return skip_every ? (layer + 1) % skip_every == 0 : layer + 1 == depth;
  }
  // One packed layer: the weight's panels, then bias, gamma and beta.
  int64_t packed_size() const { return padded * width + 3 * padded; }
  // One layer's operands of the weight gradient, as panels [padded / kPad][batch][kPad].
  int64_t panels_size() const { return padded * batch; }
};

struct StackParameters {
  const float *weight, *bias, *gamma, *beta;
};

// Rows [row, end) through layers [first, last) of a forward stretch. Row states are [batch rounded up,
// padded].
struct ForwardRows {
  int64_t row, end, first, last;
  const float* packed;  // of layer `first`, and so on
  float *a, *block;     // row states: the layer's input, and the input of its block
  float *n,
      *rstd;    // saved for layer `first` and so on, [batch, padded] and [batch] each; null to save nothing
  float* work;  // kRowBlock * padded floats of this thread
};

struct BackwardRows {
  int64_t row, end, first, last;
  const float* packed;
  const float *n, *rstd;
  const float* stream;  // [batch, padded]: the input of layer `first`
  float *da, *dblock;   // row states: gradient of the layer's output, and of its block's output
  float *a, *du;        // left behind for the weight gradients, per layer in panels; null if nobody asked
  float* sums;          // [row blocks][layers][3][padded]: dbias, dgamma, dbeta of each block of rows
  float* work;          // kRowBlock * padded floats of this thread
  bool needs_input;     // whether the gradient of layer `first`'s input is wanted
};

struct StackKernels {
  void (*pack)(const StackShape&, const StackParameters&, int64_t layer, bool transposed, float* packed);
  void (*forward)(const StackShape&, const ForwardRows&);
  void (*backward)(const StackShape&, const BackwardRows&);
  // Rows kPad * panel and the kPad - 1 after it of one layer's dweight [width, width] = a^T du, from panels.
  void (*weight_gradient)(const StackShape&, const float* a, const float* du, int64_t panel, float* dweight);
};

extern const StackKernels kStackAvx512, kStackAvx2, kStackBase;

}  // namespace deepres
