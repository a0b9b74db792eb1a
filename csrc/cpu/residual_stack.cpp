// The residual stack on the CPU: its kernels by instruction set, and the binding.

#include "cpu/residual_stack.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/isa.h"

namespace py = pybind11;

namespace deepres {

extern const StackKernels kStackBase[2];
#if defined(__x86_64__)
extern const StackKernels kStackAvx512[2], kStackAvx2[2], kStackAvx512Bf16, kStackAmx, kStackAmxPlain;
#endif

namespace {

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

StackParameters parameters_at(std::array<uintptr_t, 4> at_) {
  return {at<float>(at_[0]), at<float>(at_[1]), at<float>(at_[2]), at<float>(at_[3])};
}

StackSaved saved_at(const StackShape& shape, std::array<uintptr_t, 2> saved) {
  const auto [activations, statistics] = saved;
  if (shape.recompute) return {nullptr, nullptr, at<float>(activations)};
  float* rstd = at<float>(statistics);
  return {at<char>(activations), rstd, rstd ? rstd + shape.depth * shape.batch : nullptr};
}

}  // namespace

const StackKernels& stack_kernels(int precision) {
  static const StackKernels* const kernels[][2] = {
      // fp32, bf16
      {&kStackBase[0], &kStackBase[1]},  // Isa::kBase
#if defined(__x86_64__)
      {&kStackAvx2[0], &kStackAvx2[1]},       // kAvx2
      {&kStackAvx512[0], &kStackAvx512[1]},   // kAvx512
      {&kStackAvx512[0], &kStackAvx512Bf16},  // kAvx512Bf16
      {&kStackAvx512[0], &kStackAmxPlain},    // kAmxPlain
      {&kStackAvx512[0], &kStackAmx},         // kAmx
#endif
  };
  return *kernels[static_cast<int>(isa())][precision];
}

void bind_residual_stack(py::module_& m) {
  py::class_<StackShape>(m, "StackShape", "The sizes and options of one call of the residual stack.")
      .def(py::init([](std::array<int64_t, 4> sizes, int64_t skip_every, bool norm, bool swish, float eps,
                       int64_t recompute, bool bf16) {
             const auto [members, batch, width, depth] = sizes;
             const int64_t padded = (width + kPad - 1) / kPad * kPad;
             return StackShape{members, batch, width, padded,    depth, skip_every,
                               norm,    swish, eps,   recompute, bf16};
           }),
           "sizes: (members, batch, width, depth).")
      .def_readonly("padded", &StackShape::padded, "Columns of the saved activations.")
      .def_property_readonly("span", &stack_span, "Layers between the inputs that are saved.")
      .def_property_readonly("segment", &stack_segment,
                             "Layers between the inputs that are saved under recomputation.");

  m.def(
      "residual_stack_forward",
      [](const StackShape& shape, std::array<uintptr_t, 4> parameters, uintptr_t x, uintptr_t y,
         std::array<uintptr_t, 2> saved, int threads) {
        isa();
        py::gil_scoped_release unlocked;
        stack_forward(shape, parameters_at(parameters), at<float>(x), at<float>(y), saved_at(shape, saved),
                      threads);
      },
      "Addresses of (weight, bias, gamma, beta), x, y and (activations, statistics; 0 to save nothing).");

  m.def(
      "residual_stack_backward",
      [](const StackShape& shape, std::array<uintptr_t, 4> parameters, uintptr_t dy,
         std::array<uintptr_t, 2> saved, std::array<uintptr_t, 5> out, int threads) {
        const auto [dx, dweight, dbias, dgamma, dbeta] = out;
        const StackGradients gradients{at<float>(dx), at<float>(dweight), at<float>(dbias), at<float>(dgamma),
                                       at<float>(dbeta)};
        py::gil_scoped_release unlocked;
        stack_backward(shape, parameters_at(parameters), at<float>(dy), saved_at(shape, saved), gradients,
                       threads);
      },
      "Addresses of (weight, bias, gamma, beta), dy, (activations, statistics) and the five gradients (0: "
      "unwanted).");
}

}  // namespace deepres
