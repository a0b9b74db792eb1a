// deepres._C: the CPU kernels, bound over raw pointers so that the build knows nothing of PyTorch.
//
// Each op binds itself in csrc/cpu/<op>.cpp; Python (kernels/<op>_cpu.py) checks shapes, allocates outputs
// and passes addresses of contiguous tensors.

#include <pybind11/pybind11.h>

namespace deepres {
void bind_info_nce(pybind11::module_& m);
void bind_residual_stack(pybind11::module_& m);
}  // namespace deepres

PYBIND11_MODULE(_C, m) {
  m.doc() = "deepres CPU kernels";
  deepres::bind_info_nce(m);
  deepres::bind_residual_stack(m);
}
