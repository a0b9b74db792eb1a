// deepres._C: the CPU kernels, bound over raw pointers so that the build knows nothing of PyTorch.
//
// Each op binds itself in csrc/cpu/<op>.cpp; Python (kernels/<op>/cpu.py) checks shapes, allocates outputs
// and passes addresses of contiguous tensors.

#include <pybind11/pybind11.h>

#include "cpu/memory.h"

namespace py = pybind11;

namespace deepres {
void bind_hazard(pybind11::module_& m);
void bind_isa(pybind11::module_& m);
void bind_info_nce(pybind11::module_& m);
void bind_policy(pybind11::module_& m);
void bind_residual_stack(pybind11::module_& m);
void bind_unions(pybind11::module_& m);
}  // namespace deepres

PYBIND11_MODULE(_C, m) {
  m.doc() = "deepres CPU kernels";

  py::class_<deepres::Memory>(m, "Memory", py::buffer_protocol(),
                              "Pooled bytes, for tensors that one call leaves to another.")
      .def(py::init<size_t>())
      .def_buffer([](deepres::Memory& memory) {
        return py::buffer_info(static_cast<uint8_t*>(memory.data()),
                               static_cast<py::ssize_t>(memory.bytes()));
      });
  m.def("poison_memory", &deepres::Memory::poison, "For tests: whether every pooled buffer starts as NaN.");
  m.def("pooled_bytes", &deepres::Memory::pooled_bytes,
        "Bytes of freed memory that are kept for the next call, at most.");
  m.def("limit_pool", &deepres::Memory::limit_pool, "Lets it be no more than so many bytes from now on.");
  m.def("release_memory", &deepres::Memory::release,
        "Gives the memory kept for the next call back to the system.");

  deepres::bind_isa(m);
  deepres::bind_hazard(m);
  deepres::bind_info_nce(m);
  deepres::bind_policy(m);
  deepres::bind_residual_stack(m);
  deepres::bind_unions(m);
}
