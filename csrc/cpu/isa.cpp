// What this processor can do, which instruction set is chosen for it, and the binding.

#include "cpu/isa.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

#include <cstdlib>
#include <stdexcept>
#include <string>
#include <vector>

namespace py = pybind11;

namespace deepres {
namespace {

const char* name_of(Isa isa) {
  constexpr const char* kNames[] = {"base", "avx2", "avx512", "avx512_bf16", "amx_plain", "amx"};
  return kNames[static_cast<int>(isa)];
}

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
    if (amx_granted()) present.push_back(Isa::kAmx);
    present.push_back(Isa::kAmxPlain);
    present.push_back(Isa::kAvx512Bf16);
  }
  if (avx512) present.push_back(Isa::kAvx512);
  if (avx2) present.push_back(Isa::kAvx2);
#endif
  present.push_back(Isa::kBase);
  return present;
}

// The instruction set called `name`, or the fastest if that is null.
Isa find_isa(const char* name) {
  std::string names;
  for (const Isa each : isas()) {
    if (name ? name == std::string(name_of(each)) : each != Isa::kAmxPlain) return each;
    names += std::string(names.empty() ? "" : ", ") + name_of(each);
  }
  throw std::invalid_argument("DEEPRES_CPU_ISA must be one of " + names + " on this processor, got '" + name +
                              "'");
}

Isa& chosen() {
  static Isa isa = [] {
    const char* name = std::getenv("DEEPRES_CPU_ISA");
    return find_isa(name && *name ? name : nullptr);
  }();
  return isa;
}

}  // namespace

Isa isa() { return chosen(); }

void bind_isa(py::module_& m) {
  m.def(
      "isa", [] { return name_of(isa()); },
      "The instruction set that serves every op here; ValueError for an unknown choice.");
  m.def(
      "use_isa", [](const std::string& name) { chosen() = find_isa(name.c_str()); },
      "For tests: lets another instruction set serve. ValueError names those there are.");
  m.def(
      "isas",
      [] {
        std::vector<std::string> names;
        for (const Isa each : isas()) names.push_back(name_of(each));
        return names;
      },
      "The instruction sets of this processor, the fastest first; amx_plain serves only when named.");
}

}  // namespace deepres
