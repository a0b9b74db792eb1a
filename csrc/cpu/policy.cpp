// A policy for one observation at a time: its weights, packed once, and the binding.

#include "cpu/policy.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <mutex>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace py = pybind11;

namespace deepres::policy {

extern const Act kActGeneric;
#if defined(__x86_64__)
extern const Act kActAvx2, kActAvx512;
#endif

namespace {

Act act_of_isa() { return DEEPRES_WIDEST(kActGeneric, kActAvx2, kActAvx512); }

uint32_t bits_of(float v) {
  uint32_t bits;
  std::memcpy(&bits, &v, sizeof bits);
  return bits;
}

// v rounded to nearest even in bf16; NaN stays NaN.
uint32_t bf16_of(float v) {
  const uint32_t bits = bits_of(v);
  return (v == v ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000) >> 16;
}

// A Dense layer: the weight from input k to column n lies at weight[k * input_stride + n * column_stride].
// bias, gamma, beta [columns]; gamma is null where there is no LayerNorm.
struct Dense {
  const float* weight;
  int64_t inputs, columns, input_stride, column_stride;
  const float *bias, *gamma, *beta;

  float at(int64_t k, int64_t n) const {
    return k < inputs && n < columns ? weight[k * input_stride + n * column_stride] : 0.0f;
  }
};

float* pack_vector(const float* from, int64_t count, float* to) {
  const int64_t padded = Shape::rounded_up(count, kColumns);
  std::fill(std::copy_n(from, count, to), to + padded, 0.0f);
  return to + padded;
}

// `layer` packed to `to`, its inputs padded to `inputs`; returns what follows it.
float* pack(const Dense& layer, int64_t inputs, bool bf16, float* to) {
  const int64_t pack = bf16 ? 2 : 1;
  for (int64_t panel = 0; panel < layer.columns; panel += kColumns) {
    for (int64_t k = 0; k < inputs; k += pack) {
      for (int64_t n = panel; n < panel + kColumns; ++n, ++to) {
        *to = layer.at(k, n);
        if (!bf16) continue;
        const uint32_t word = bf16_of(layer.at(k, n)) | bf16_of(layer.at(k + 1, n)) << 16;
        std::memcpy(to, &word, sizeof word);
      }
    }
  }
  to = pack_vector(layer.bias, layer.columns, to);
  if (!layer.gamma) return to;
  to = pack_vector(layer.gamma, layer.columns, to);
  return pack_vector(layer.beta, layer.columns, to);
}

const float* at(uintptr_t address) { return reinterpret_cast<const float*>(address); }

class Policy {
 public:
  using Four = std::array<uintptr_t, 4>;  // addresses of weight, bias, gamma, beta; the last two may be 0

  Policy(const Shape& shape, Four stem, Four stack, std::array<uintptr_t, 2> head)
      : shape_(shape),
        packed_(shape.packed_words() * sizeof(float)),
        work_(shape.work_words() * sizeof(float)) {
    const int64_t width = shape.width;
    float* to = floats(packed_);
    to = pack({at(stem[0]), shape.inputs, width, 1, shape.inputs, at(stem[1]), at(stem[2]), at(stem[3])},
              shape.padded_inputs(), shape.bf16, to);
    for (int64_t layer = 0; layer < shape.depth; ++layer) {
      const int64_t skipped = layer * width;
      to = pack({at(stack[0]) + skipped * width, width, width, width, 1, at(stack[1]) + skipped,
                 shape.norm ? at(stack[2]) + skipped : nullptr, at(stack[3]) + skipped},
                shape.columns(), shape.bf16, to);
    }
    pack({at(head[0]), width, shape.outputs, 1, width, at(head[1]), nullptr, nullptr}, shape.columns(),
         shape.bf16, to);
  }

  // Row after row, each a walk through all weights. Two threads take turns.
  void act(const float* obs, float* action, int64_t rows) {
    const Act one = act_of_isa();
    const std::lock_guard<std::mutex> alone(mutex_);
    for (int64_t row = 0; row < rows; ++row) {
      one(shape_, floats(packed_), obs + row * shape_.inputs, action + row * shape_.outputs, floats(work_));
    }
  }

  int64_t bytes() const { return shape_.packed_words() * int64_t{sizeof(float)}; }

  // The sum of all words as integers, eight side by side: how fast they can be read at all.
  uint32_t read() const {
    const float* words = floats(packed_);
    uint32_t sums[8 * 16] = {};
    for (int64_t i = 0; i + 128 <= shape_.packed_words(); i += 128) {
      for (int64_t j = 0; j < 128; ++j) sums[j] += bits_of(words[i + j]);
    }
    uint32_t total = 0;
    for (const uint32_t each : sums) total += each;
    return total;
  }

 private:
  static float* floats(const Memory& memory) { return static_cast<float*>(memory.data()); }

  const Shape shape_;
  const Memory packed_, work_;
  std::mutex mutex_;
};

}  // namespace
}  // namespace deepres::policy

namespace deepres {

void bind_policy(py::module_& m) {
  using policy::Policy;
  py::class_<Policy>(m, "Policy", "A policy's packed weights, for one observation at a time on one thread.")
      .def(py::init([](std::array<int64_t, 5> sizes, bool norm, bool swish, bool clocked, float eps,
                       bool bf16, Policy::Four stem, Policy::Four stack, std::array<uintptr_t, 2> head) {
             const auto [inputs, width, depth, outputs, skip_every] = sizes;
             return std::make_unique<Policy>(
                 policy::Shape{inputs, width, depth, outputs, skip_every, norm, swish, clocked, eps, bf16},
                 stem, stack, head);
           }),
           "sizes: (inputs, width, depth, outputs, skip_every). Addresses of the parameters of stem, stack "
           "and head: weights [W, in], [D, W, W], [out, W]; gamma and beta 0 without norm. They are copied.")
      .def(
          "act",
          [](Policy& self, uintptr_t obs, uintptr_t action, int64_t rows) {
            isa();
            py::gil_scoped_release unlocked;
            self.act(policy::at(obs), reinterpret_cast<float*>(action), rows);
          },
          "Addresses of obs [rows, inputs] and action [rows, outputs]; nothing is allocated.")
      .def(
          "read",
          [](const Policy& self) {
            py::gil_scoped_release unlocked;
            return self.read();
          },
          "For benchmarks: reads every weight once and does nothing else; a sum that means nothing.")
      .def_property_readonly("bytes", &Policy::bytes, "Of the packed weights.");
}

}  // namespace deepres
