// The forward pass of one observation, written once over vec.h and compiled for each instruction set by the
// file that includes this, which sets DEEPRES_LANES.

#pragma once

#include <algorithm>
#include <cmath>
#include <limits>

#include "cpu/policy.h"
#include "cpu/vec.h"

namespace deepres::policy {
namespace {

constexpr int64_t kVectors = kColumns / kLanes;
constexpr int64_t kSums = kLanes / 4;  // sums of a column side by side: eight vectors wait for no other
constexpr int64_t kAhead = 512;        // words from the prefetch to the use

// Of input `step` (a constant once unrolled) of kStep, kLanes columns from `weight` on.
template <bool kBf16>
DEEPRES_INLINE Floats weights(const float* weight, int64_t step, int64_t vector) {
  if constexpr (!kBf16) return load(weight + step * kColumns + vector * kLanes);
  const Ints pair = as_ints(load(weight + step / 2 * kColumns + vector * kLanes));
  return as_floats(step % 2 ? pair & int32_t(0xffff0000u) : pair << 16);
}

// out [columns] = in [inputs] @ weight + bias, the weight followed by its bias. Returns what follows the
// bias.
template <bool kBf16>
const float* product(const float* weight, const float* in, int64_t inputs, int64_t columns, float* out) {
  constexpr int64_t kWords = kStep * kColumns / (kBf16 ? 2 : 1);
  const float* bias = weight + inputs * columns / (kBf16 ? 2 : 1);
  for (int64_t column = 0; column < columns; column += kColumns) {
    Floats sums[kSums][kVectors] = {};
    for (int64_t input = 0; input < inputs; input += kStep, weight += kWords) {
      for (int64_t word = 0; word < kWords; word += 16) __builtin_prefetch(weight + kAhead + word);
      DEEPRES_UNROLL
      for (int64_t step = 0; step < kStep; ++step) {
        const Floats x = splat(in[input + step]);
        DEEPRES_UNROLL
        for (int64_t v = 0; v < kVectors; ++v) sums[step % kSums][v] += x * weights<kBf16>(weight, step, v);
      }
    }
    DEEPRES_UNROLL
    for (int64_t v = 0; v < kVectors; ++v) {
      Floats total = sums[0][v];
      for (int64_t i = 1; i < kSums; ++i) total += sums[i][v];
      store(out + column + v * kLanes, total + load(bias + column + v * kLanes));
    }
  }
  return bias + columns;
}

// Mean and 1 / sqrt(variance + eps) of u [width].
inline void statistics(const float* u, int64_t width, float eps, float* mean, float* rstd) {
  const int64_t whole = width / kLanes * kLanes;
  const Ints rest = first_lanes(width - whole);
  Floats total{}, squares{};
  for (int64_t c = 0; c < whole; c += kLanes) total += load(u + c);
  if (whole != width) total += keep(load(u + whole), rest);
  *mean = sum(total) / float(width);
  for (int64_t c = 0; c < whole; c += kLanes) {
    const Floats centred = load(u + c) - *mean;
    squares += centred * centred;
  }
  if (whole != width) {
    const Floats centred = keep(load(u + whole) - *mean, rest);
    squares += centred * centred;
  }
  const float variance = sum(squares) / float(width);
  // Overflown, it would give zeros: finite, and wrong.
  *rstd = variance < std::numeric_limits<float>::infinity() ? 1.0f / std::sqrt(variance + eps)
                                                            : std::numeric_limits<float>::quiet_NaN();
}

// a = activation(gamma * (u - mean) * rstd + beta), or activation(u); with kSkips a = block = a + block.
// gamma and beta lie at `scales`. Returns what follows them.
template <bool kSkips>
const float* activate(const Shape& shape, const float* u, const float* scales, float* a, float* block) {
  const int64_t columns = shape.columns();
  float mean = 0, rstd = 1;
  if (shape.norm) statistics(u, shape.width, shape.eps, &mean, &rstd);
  for (int64_t c = 0; c < columns; c += kLanes) {
    Floats z = load(u + c);
    if (shape.norm) z = load(scales + c) * ((z - mean) * rstd) + load(scales + columns + c);
    Floats y = z <= 0.0f ? Floats{} : z;  // NaN stays NaN
    if (shape.swish) y = z * sigmoid(z);
    if constexpr (kSkips) {
      y += load(block + c);
      store(block + c, y);
    }
    store(a + c, y);
  }
  return shape.norm ? scales + 2 * columns : scales;
}

template <bool kBf16>
void act_with(const Shape& shape, const float* packed, const float* obs, float* action, float* work) {
  const int64_t columns = shape.columns(), inputs = shape.padded_inputs();
  float *a = work, *u = a + shape.widest(), *block = u + shape.widest();
  std::copy_n(obs, shape.inputs, a);
  std::fill(a + shape.inputs, a + inputs, 0.0f);
  if (shape.clocked) a[shape.inputs - 1] = std::log1p(a[shape.inputs - 1]);
  packed = product<kBf16>(packed, a, inputs, columns, u);
  packed = activate<false>(shape, u, packed, a, nullptr);
  std::copy_n(a, columns, block);
  for (int64_t layer = 0; layer < shape.depth; ++layer) {
    const bool skips = shape.skip_every && (layer + 1) % shape.skip_every == 0;
    packed = product<kBf16>(packed, a, columns, columns, u);
    packed = (skips ? activate<true> : activate<false>)(shape, u, packed, a, block);
  }
  product<kBf16>(packed, a, columns, shape.padded_outputs(), u);
  for (int64_t i = 0; i < shape.outputs; ++i) action[i] = std::tanh(u[i]);
}

inline void act(const Shape& shape, const float* packed, const float* obs, float* action, float* work) {
  (shape.bf16 ? act_with<true> : act_with<false>)(shape, packed, obs, action, work);
}

}  // namespace
}  // namespace deepres::policy
