// Lengths of unions of intervals: blocks of parts over the threads, and the bindings.

#include "cpu/unions.h"

#include <pybind11/pybind11.h>

#include <algorithm>

#include "cpu/isa.h"

namespace deepres::unions {
namespace {

constexpr int64_t kBlock = 2048;  // parts: some tens of microseconds, more than it takes to wake a thread

const Kernels& kernels() { return DEEPRES_WIDEST(kGeneric, kAvx2, kAvx512); }

// body(first part, parts) for each block.
template <class Body>
void over_blocks(int64_t parts, int threads, Body&& body) {
  const int64_t blocks = (parts + kBlock - 1) / kBlock;
#pragma omp parallel for num_threads(static_cast<int>(std::min<int64_t>(threads, blocks))) if (blocks > 1)
  for (int64_t block = 0; block < blocks; ++block) {
    body(block * kBlock, std::min(kBlock, parts - block * kBlock));
  }
}

}  // namespace
}  // namespace deepres::unions

namespace deepres {

void bind_unions(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace unions;
  const auto at = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
  m.def(
      "union_lengths",
      [=](uintptr_t x, uintptr_t y, int64_t parts, int threads, uintptr_t out) {
        const Kernels& chosen = kernels();
        py::gil_scoped_release release;
        over_blocks(parts, threads, [&](int64_t first, int64_t count) {
          chosen.lengths(count, at(x) + first * kPart, at(y) + first * kPart, at(out) + first);
        });
      },
      "Addresses of x and y [parts, 8] and of out [parts]. See kernels/quasimetric/cpu.py.");
  m.def(
      "union_gradients",
      [=](uintptr_t x, uintptr_t y, uintptr_t d, int64_t parts, int threads, uintptr_t dx, uintptr_t dy) {
        const Kernels& chosen = kernels();
        py::gil_scoped_release release;
        over_blocks(parts, threads, [&](int64_t first, int64_t count) {
          const int64_t skipped = first * kPart;
          chosen.gradients(count, at(x) + skipped, at(y) + skipped, at(d) + first,
                           dx ? at(dx) + skipped : nullptr, dy ? at(dy) + skipped : nullptr);
        });
      },
      "Addresses of x, y [parts, 8], d [parts] and of the gradients dx, dy [parts, 8], 0 where not wanted.");
}

}  // namespace deepres
