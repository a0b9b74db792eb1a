// A policy for one observation at a time, on one thread: what its binding and the kernel of each instruction
// set share.
//
// All weights lie packed in the order in which a call reads them, each once: a call is a walk through one
// stretch of memory, as fast as memory gives it.
//
//   stem, each layer, head:  weight [panels, inputs words, 32 columns], bias, gamma, beta
//
// Inputs are padded with zeros to a multiple of kStep, columns to a multiple of kColumns. A word is a float,
// or two bf16 values of neighbouring inputs.

#pragma once

#include <cstdint>

namespace deepres::policy {

constexpr int64_t kColumns = 32;  // of a panel
constexpr int64_t kStep = 4;      // inputs that a product takes together

struct Shape {
  int64_t inputs, width, depth, outputs, skip_every;
  bool norm, swish;
  bool clocked;  // whether log(1 + .) of the last input is taken
  float eps;
  bool bf16;  // whether weights are rounded to bf16; sums and activations are fp32 always

  static int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

  int64_t columns() const { return rounded_up(width, kColumns); }
  int64_t padded_inputs() const { return rounded_up(inputs, kStep); }
  int64_t padded_outputs() const { return rounded_up(outputs, kColumns); }

  // Words of a weight with `in` inputs, a multiple of kStep, and `out` columns, a multiple of kColumns.
  int64_t weight_words(int64_t in, int64_t out) const { return in * out / (bf16 ? 2 : 1); }
  int64_t vectors() const { return norm ? 3 : 1; }  // beside a weight: bias, and gamma and beta
  int64_t stem_words() const { return weight_words(padded_inputs(), columns()) + vectors() * columns(); }
  int64_t layer_words() const { return weight_words(columns(), columns()) + vectors() * columns(); }
  int64_t head_words() const { return weight_words(columns(), padded_outputs()) + padded_outputs(); }
  int64_t packed_words() const { return stem_words() + depth * layer_words() + head_words(); }

  // Activations, products and the block's input.
  int64_t widest() const {
    const int64_t hidden = columns() > padded_outputs() ? columns() : padded_outputs();
    return hidden > padded_inputs() ? hidden : rounded_up(padded_inputs(), kColumns);
  }
  int64_t work_words() const { return 3 * widest(); }
};

// obs [inputs] -> action [outputs] = tanh(mean). work: work_words(), whatever they hold.
using Act = void (*)(const Shape&, const float* packed, const float* obs, float* action, float* work);

}  // namespace deepres::policy
