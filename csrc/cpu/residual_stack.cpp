// The residual stack on the CPU: which kernels serve this processor, and the binding.

#include "cpu/residual_stack.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <array>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace deepres {

extern const StackKernels kStackBase[2];
#if defined(__x86_64__)
extern const StackKernels kStackAvx512[2], kStackAvx2[2], kStackAvx512Bf16, kStackAmx, kStackAmxPlain;
#endif

namespace {

struct Isa {
  const char* name;
  const StackKernels* kernels[2];  // fp32, bf16
  bool for_tests = false;          // serves only when named
};

#if defined(__x86_64__)
// Whether the processor has AMX for bf16 and the system lets this process use it.
bool amx_granted() {
#if defined(__linux__)
  constexpr unsigned kBf16 = 1u << 22, kTile = 1u << 24;
  constexpr long kRequestPermission = 0x1023, kTileData = 18;  // arch_prctl: ARCH_REQ_XCOMP_PERM
  unsigned eax, ebx, ecx, edx;
  return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (edx & kBf16) && (edx & kTile) &&
         syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}
#endif

// Those that this processor has, the fastest first.
std::vector<Isa> isas() {
  std::vector<Isa> present;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");  // and so f16c
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  if (avx512 && __builtin_cpu_supports("avx512bf16")) {
    if (amx_granted()) present.push_back({"amx", {&kStackAvx512[0], &kStackAmx}});
    present.push_back({"amx_plain", {&kStackAvx512[0], &kStackAmxPlain}, true});
    present.push_back({"avx512_bf16", {&kStackAvx512[0], &kStackAvx512Bf16}});
  }
  if (avx512) present.push_back({"avx512", {&kStackAvx512[0], &kStackAvx512[1]}});
  if (avx2) present.push_back({"avx2", {&kStackAvx2[0], &kStackAvx2[1]}});
#endif
  present.push_back({"base", {&kStackBase[0], &kStackBase[1]}});
  return present;
}

// The instruction set called `name`, or the fastest if that is null.
Isa find_isa(const char* name) {
  std::string names;
  for (const Isa& each : isas()) {
    if (name ? name == std::string(each.name) : !each.for_tests) return each;
    names += std::string(names.empty() ? "" : ", ") + each.name;
  }
  throw std::invalid_argument("DEEPRES_CPU_ISA must be one of " + names + " on this processor, got '" + name +
                              "'");
}

Isa& isa() {
  static Isa chosen = find_isa(std::getenv("DEEPRES_CPU_ISA"));
  return chosen;
}

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

const StackKernels& stack_kernels(int precision) { return *isa().kernels[precision]; }

void bind_residual_stack(py::module_& m) {
  py::class_<StackShape>(m, "StackShape", "The sizes and options of one call of the residual stack.")
      .def(py::init([](std::array<int64_t, 3> sizes, int64_t skip_every, bool norm, bool swish, float eps,
                       int64_t recompute, bool bf16) {
             const auto [batch, width, depth] = sizes;
             const int64_t padded = (width + kPad - 1) / kPad * kPad;
             return StackShape{batch, width, padded, depth, skip_every, norm, swish, eps, recompute, bf16};
           }),
           "sizes: (batch, width, depth).")
      .def_readonly("padded", &StackShape::padded, "Columns of the saved activations.")
      .def_property_readonly("span", &stack_span, "Layers between the inputs that are saved.")
      .def_property_readonly("segment", &stack_segment,
                             "Layers between the inputs that are saved under recomputation.");

  m.def(
      "use_isa", [](const std::string& name) { isa() = find_isa(name.c_str()); },
      "For tests: lets another instruction set serve. ValueError names those there are.");

  m.def(
      "isa", [] { return isa().name; },
      "The instruction set that serves here; ValueError for an unknown choice.");

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
