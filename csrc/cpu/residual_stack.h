// The residual stack on the CPU: what the driver and the kernels of each instruction set share.
//
// A stretch is a run of layers. For each stretch the driver lets the threads pack its weights, then walk
// their own rows through all its layers, and (backward) turn what the rows left behind into weight gradients,
// one layer later, as these want the output of the layer before:
//
//   forward    pack W -> rows: [product, statistics, activation, skip] per layer
//   backward   pack W^T -> rows: [dz, du, product with W^T] per layer, leaving a and du -> dW = a^T du
//
// Inside, the width is padded to `padded`; padded columns hold zeros, or values that only meet zeros, and
// statistics run over `width`. Operands of products are counted in 32-bit words, one or two values each
// (operands.h).

#pragma once

#include <cstdint>

namespace deepres {

constexpr int64_t kPad = 32;       // columns are padded to a multiple of this: the widest panel of any kernel
constexpr int64_t kRowBlock = 32;  // rows whose column sums are added up together, whatever the threads

struct StackShape {
  int64_t members;  // stacks side by side, each with rows and parameters of its own
  int64_t batch, width, padded, depth, skip_every;
  bool norm, swish;
  float eps;
  int64_t recompute;  // blocks whose inside backward computes again; 0 saves every layer
  int precision;      // 0 fp32, 1 bf16

  bool opens_block(int64_t layer) const { return skip_every ? layer % skip_every == 0 : layer == 0; }
  bool ends_block(int64_t layer) const {
    return skip_every ? (layer + 1) % skip_every == 0 : layer + 1 == depth;
  }
};

// One layer's bias, gamma and beta, padded with zeros; gamma 1 and beta 0 where norm is off.
struct LayerVectors {
  const float *bias, *gamma, *beta;
};

// Rows [row, end) through layers [first, last). Pointers are to what belongs to layer `first`; layers follow
// each other. Row states hold every row of the batch, rounded up to whole row blocks.
struct StackRows {
  int64_t row, end, first, last;
  const float* packed;   // weights
  const float* vectors;  // [layers, 3, padded]: bias, gamma, beta
  void* n;               // saved [layers, batch, padded]; null to save nothing
  float* rstd;           // saved [layers, batch]
  float* work;           // work_size() floats of this thread, the last `padded` of them zero
};

struct ForwardRows : StackRows {
  float* a;      // row state [.., padded words]: the layer's input as an operand
  float* block;  // row state [.., padded]: the input of its block, and the output of the last layer
  bool enters;   // whether `a` has still to be made from `block`
};

// The inputs of all blocks in layers [first, last), as panels for the weight gradients.
struct RebuildRows : StackRows {
  const float* stream;  // [batch, padded]: the input of layer `first`
  float* inputs;        // [blocks] panels
};

// One layer, `first`.
struct BackwardRows : StackRows {
  float *da, *dblock;  // row states: gradient of the layer's output, and of its block's output
  float* a;            // panels of the layer's output; null if nobody wants it
  float* du;           // panels; null if no weight gradient is wanted
  float* sums;         // [row blocks, 3, padded]: dbias, dgamma, dbeta of each block of rows
  bool needs_input;    // whether the gradient of the layer's input is wanted
};

struct StackKernels {
  int64_t pack_values;  // values to a word
  int64_t saved_bytes;  // of one saved value of n
  int64_t left_bytes;   // that the layers of a stretch may leave behind for their weight gradients
  // weight [width, width] as right operand of the product, or its transpose: what rows kPad * part and the
  // kPad - 1 after it of weight give of it. `work` as in StackRows.
  void (*pack)(const StackShape&, const float* weight, bool transposed, int64_t part, float* packed,
               float* work);
  void (*forward)(const StackShape&, const ForwardRows&);
  void (*rebuild)(const StackShape&, const RebuildRows&);
  void (*backward)(const StackShape&, const BackwardRows&);
  // Rows kPad * panel and the kPad - 1 after it of one layer's dweight [width, width] = a^T du, from panels.
  void (*weight_gradient)(const StackShape&, const float* a, const float* du, int64_t panel, float* dweight,
                          float* work);

  // Words along k of a product over the width, and over the batch.
  int64_t width_words(const StackShape& shape) const {
    return pack_values == 1 ? shape.width : row_words(shape);
  }
  int64_t row_words(const StackShape& shape) const { return shape.padded / pack_values; }
  int64_t batch_words(const StackShape& shape) const {
    return (shape.batch + kRowBlock - 1) / kRowBlock * kRowBlock / pack_values;
  }
  int64_t packed_size(const StackShape& shape) const { return shape.padded * width_words(shape); }
  // One layer's operand of the weight gradient: panels [padded / side, batch words, side].
  int64_t panels_size(const StackShape& shape) const { return shape.padded * batch_words(shape); }
};

inline int64_t work_size(const StackShape& shape) { return (2 * kRowBlock + 1) * shape.padded; }

// The kernels that serve `precision` with the instruction set isa(); throws as that does.
const StackKernels& stack_kernels(int precision);

// Layers between the saved inputs (streams) that backward rebuilds the blocks from; layers between the inputs
// that recomputation keeps (the whole depth without).
int64_t stack_span(const StackShape& shape);
int64_t stack_segment(const StackShape& shape);

// Of the k-th of things that are `size` values each; null stays null.
template <class T>
T* nth(T* first, int64_t k, int64_t size) {
  return first ? first + k * size : nullptr;
}

// Pointers are to the first member's; `of` gives the k-th's.
struct StackParameters {
  const float *weight, *bias, *gamma, *beta;

  StackParameters of(const StackShape& shape, int64_t k) const {
    const int64_t size = shape.depth * shape.width;
    return {nth(weight, k, size * shape.width), nth(bias, k, size), nth(gamma, k, size), nth(beta, k, size)};
  }
};

struct StackGradients {
  float *dx, *dweight, *dbias, *dgamma, *dbeta;  // null where nobody asked

  StackGradients of(const StackShape& shape, int64_t k) const {
    const int64_t size = shape.depth * shape.width;
    return {nth(dx, k, shape.batch * shape.width), nth(dweight, k, size * shape.width), nth(dbias, k, size),
            nth(dgamma, k, size), nth(dbeta, k, size)};
  }
};

// What forward leaves for backward. Without recomputation: n [depth, batch, padded], rstd [depth, batch] and
// the inputs of the spans, streams [spans, batch, padded]. With it: the inputs of the segments in streams,
// and nothing else. rstd and streams of a member lie side by side.
struct StackSaved {
  char* n;
  float *rstd, *streams;

  StackSaved of(const StackShape& shape, int64_t k) const;
};

// saved.streams may be null: nothing is saved.
void stack_forward(const StackShape&, const StackParameters&, const float* x, float* y, const StackSaved&,
                   int threads);
void stack_backward(const StackShape&, const StackParameters&, const float* dy, const StackSaved&,
                    const StackGradients&, int threads);

}  // namespace deepres
