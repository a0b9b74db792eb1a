// InfoNCE on the CPU, as Python calls it.

#include "info_nce.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>

#include "cpu/isa.h"

namespace deepres::nce {
namespace {

const Kernels& kernels() { return DEEPRES_WIDEST(kGeneric, kAvx2, kAvx512); }

}  // namespace
}  // namespace deepres::nce

namespace deepres {

void bind_info_nce(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace nce;
  m.def(
      "info_nce",
      [](std::array<uintptr_t, 6> in, std::array<int64_t, 5> sizes, int energy, int form, double penalty,
         float scale, float bias, int threads, std::array<uintptr_t, 8> out) {
        const Kernels& tiles = kernels();
        const auto at = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
        const auto [b, goals, d, offset, self] = sizes;
        const Problem problem{at(in[0]),  at(in[1]), reinterpret_cast<const int64_t*>(in[2]),
                              at(in[3]),  at(in[4]), at(in[5]),
                              b,          goals,     d,
                              offset,     self,      Energy(energy),
                              Form(form), penalty,   scale,
                              bias};
        const Results results{at(out[0]), at(out[1]), at(out[2]), at(out[3]),
                              at(out[4]), at(out[5]), at(out[6]), at(out[7])};
        py::gil_scoped_release release;
        run(problem, tiles, threads, results);
      },
      "in: addresses of phi, psi, labels, targets, row_weight, penalty_weight; sizes: b, goals, d, offset,\n"
      "self; out: addresses of loss, lse, metrics, rows, dphi, dpsi (which are added to), dscale, dbias. An\n"
      "address is 0 where there is none. d: a multiple of 16, for mrn of 32; see kernels/info_nce/cpu.py.");
}

}  // namespace deepres
