// The residual stack on the CPU: the driver that hands stretches of layers and tiles of rows to threads, and
// the binding.

#include "cpu/residual_stack.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdlib>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "cpu/threads.h"

namespace py = pybind11;

namespace deepres {
namespace {

constexpr int64_t kTileRows = 128;      // rows that a thread takes through a stretch at a time, at most
constexpr int64_t kStretchLayers = 16;  // layers of a stretch, at most (or one block, if that is longer)
constexpr int64_t kStretchBytes = int64_t{24}
                                  << 20;  // what a stretch may leave behind for its weight gradients

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// Floats on a cache line boundary, uninitialised.
struct Scratch {
  struct Free {
    void operator()(float* p) const { std::free(p); }
  };
  std::unique_ptr<float, Free> data;

  explicit Scratch(int64_t count) {
    data.reset(static_cast<float*>(std::aligned_alloc(64, rounded_up(std::max<int64_t>(count, 1) * 4, 64))));
    if (!data) throw std::bad_alloc();
  }
  float* at(int64_t offset = 0) const { return data.get() + offset; }
};

int64_t stretch_layers(const StackShape& shape) {
  const int64_t left_behind = 2 * 4 * std::max<int64_t>(shape.batch, 1) * shape.padded;
  int64_t layers = std::clamp<int64_t>(kStretchBytes / left_behind, 1, kStretchLayers);
  if (shape.skip_every) layers = std::max(layers - layers % shape.skip_every, shape.skip_every);
  return std::min(layers, shape.depth);
}

int64_t stretches(const StackShape& shape) {
  return (shape.depth + stretch_layers(shape) - 1) / stretch_layers(shape);
}

int64_t tile_rows(const StackShape& shape, int threads) {
  return std::clamp(rounded_up((shape.batch + threads - 1) / threads, kRowBlock), kRowBlock, kTileRows);
}

struct Isa {
  const char* name;
  const StackKernels* kernels;
  bool present;
};

std::vector<Isa> isas() {
  std::vector<Isa> all;
#if defined(__x86_64__)
  __builtin_cpu_init();
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
  const bool avx512 = avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                      __builtin_cpu_supports("avx512vl");
  all.push_back({"avx512", &kStackAvx512, avx512});
  all.push_back({"avx2", &kStackAvx2, avx2});
#endif
  all.push_back({"base", &kStackBase, true});
  return all;
}

// The widest instruction set of this processor, or the one DEEPRES_CPU_ISA names.
const Isa& isa() {
  static const Isa chosen = [] {
    const char* wanted = std::getenv("DEEPRES_CPU_ISA");
    std::string names;
    for (const Isa& each : isas()) {
      if (!each.present) continue;
      if (!wanted || std::string(wanted) == each.name) return each;
      names += std::string(names.empty() ? "" : ", ") + each.name;
    }
    throw py::value_error("DEEPRES_CPU_ISA must be one of " + names + " on this processor, got '" + wanted +
                          "'");
  }();
  return chosen;
}

// Row states [batch rounded up, padded] from and to [batch, width]; what is not covered holds zeros.
void load_rows(const StackShape& shape, const float* source, int64_t row, int64_t end, float* state) {
  for (; row < end; ++row) {
    const int64_t real = row < shape.batch ? shape.width : 0;
    std::copy_n(source + row * shape.width, real, state + row * shape.padded);
    std::fill_n(state + row * shape.padded + real, shape.padded - real, 0.0f);
  }
}

void store_rows(const StackShape& shape, const float* state, int64_t row, int64_t end, float* target) {
  for (; row < std::min(end, shape.batch); ++row) {
    std::copy_n(state + row * shape.padded, shape.width, target + row * shape.width);
  }
}

struct Saved {
  float *n, *rstd, *streams;  // [depth, batch, padded], [depth, batch], [stretches, batch, padded]
};

void stack_forward(const StackShape& shape, const StackParameters& parameters, const float* x, float* y,
                   const Saved& saved, int threads) {
  const StackKernels& kernels = *isa().kernels;
  const int64_t stretch = stretch_layers(shape), tile = tile_rows(shape, threads);
  const int64_t rows = rounded_up(shape.batch, tile), state = rows * shape.padded;
  const int64_t work = kRowBlock * shape.padded, saved_rows = shape.batch * shape.padded;
  const Scratch packed(stretch * shape.packed_size()), states(2 * state), works(threads * work);

#pragma omp parallel num_threads(threads)
  {
    const int thread = thread_index();
    for (int64_t first = 0; first < shape.depth; first += stretch) {
      const int64_t last = std::min(first + stretch, shape.depth);
#pragma omp for schedule(static)
      for (int64_t layer = first; layer < last; ++layer) {
        kernels.pack(shape, parameters, layer, false, packed.at((layer - first) * shape.packed_size()));
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row += tile) {
        const int64_t end = std::min(row + tile, shape.batch);
        float *a = states.at(), *block = states.at(state);
        if (first == 0) {
          load_rows(shape, x, row, row + tile, a);
          load_rows(shape, x, row, row + tile, block);
        }
        float *n = nullptr, *rstd = nullptr;
        if (saved.n) {
          n = saved.n + first * saved_rows;
          rstd = saved.rstd + first * shape.batch;
          std::copy_n(a + row * shape.padded, (end - row) * shape.padded,
                      saved.streams + first / stretch * saved_rows + row * shape.padded);
        }
        kernels.forward(shape,
                        {row, end, first, last, packed.at(), a, block, n, rstd, works.at(thread * work)});
        if (last == shape.depth) store_rows(shape, block, row, end, y);
      }
    }
  }
}

struct Gradients {
  float *dx, *dweight, *dbias, *dgamma, *dbeta;  // null where nobody asked
};

// Adds up one layer's column sums [row blocks][3][padded], whose row blocks lie `stride` apart.
void add_sums(const StackShape& shape, const float* sums, int64_t stride, int64_t layer,
              const Gradients& gradients) {
  for (float* target : {gradients.dbias, gradients.dgamma, gradients.dbeta}) {
    if (target) {
      float* row = target + layer * shape.width;
      std::fill_n(row, shape.width, 0.0f);
      for (int64_t block = 0; block * kRowBlock < shape.batch; ++block) {
        for (int64_t j = 0; j < shape.width; ++j) row[j] += sums[block * stride + j];
      }
    }
    sums += shape.padded;
  }
}

void stack_backward(const StackShape& shape, const StackParameters& parameters, const float* dy,
                    const Saved& saved, const Gradients& gradients, int threads) {
  const StackKernels& kernels = *isa().kernels;
  const int64_t stretch = stretch_layers(shape), tile = tile_rows(shape, threads);
  const int64_t rows = rounded_up(shape.batch, tile), state = rows * shape.padded;
  const int64_t work = (kRowBlock + 1) * shape.padded, saved_rows = shape.batch * shape.padded;
  const int64_t panels = gradients.dweight ? shape.padded / kPad : 0, sums_layer = 3 * shape.padded;
  const Scratch packed(stretch * shape.packed_size()), states(2 * state), works(threads * work),
      sums(rows / kRowBlock * stretch * sums_layer), left(panels ? 2 * stretch * shape.panels_size() : 0);
  float* left_a = panels ? left.at() : nullptr;
  float* left_du = panels ? left.at(stretch * shape.panels_size()) : nullptr;

#pragma omp parallel num_threads(threads)
  {
    float* mine = works.at(thread_index() * work);
    std::fill_n(mine, work, 0.0f);
    for (int64_t first = (shape.depth - 1) / stretch * stretch; first >= 0; first -= stretch) {
      const int64_t last = std::min(first + stretch, shape.depth);
#pragma omp for schedule(static)
      for (int64_t layer = first; layer < last; ++layer) {
        kernels.pack(shape, parameters, layer, true, packed.at((layer - first) * shape.packed_size()));
      }
#pragma omp for schedule(static)
      for (int64_t row = 0; row < rows; row += tile) {
        const int64_t end = std::min(row + tile, shape.batch);
        float* da = states.at();
        if (last == shape.depth) load_rows(shape, dy, row, row + tile, da);
        const bool needs_input = first > 0 || gradients.dx;
        kernels.backward(shape,
                         {row, end, first, last, packed.at(), saved.n + first * saved_rows,
                          saved.rstd + first * shape.batch, saved.streams + first / stretch * saved_rows, da,
                          states.at(state), left_a, left_du, sums.at(), mine, needs_input});
        if (first == 0 && gradients.dx) store_rows(shape, da, row, end, gradients.dx);
      }
#pragma omp for schedule(dynamic)
      for (int64_t task = 0; task < (last - first) * (panels + 1); ++task) {
        const int64_t local = task / (panels + 1), panel = task % (panels + 1), layer = first + local;
        if (panel == panels) {
          add_sums(shape, sums.at(local * sums_layer), (last - first) * sums_layer, layer, gradients);
        } else {
          kernels.weight_gradient(shape, left_a + local * shape.panels_size(),
                                  left_du + local * shape.panels_size(), panel,
                                  gradients.dweight + layer * shape.width * shape.width);
        }
      }
    }
  }
}

template <class T>
T* at(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

Saved saved_at(const StackShape& shape, uintptr_t n, uintptr_t statistics) {
  float* rstd = at<float>(statistics);
  return {at<float>(n), rstd, rstd ? rstd + shape.depth * shape.batch : nullptr};
}

}  // namespace

void bind_residual_stack(py::module_& m) {
  py::class_<StackShape>(m, "StackShape", "The sizes and options of one call of the residual stack.")
      .def(py::init([](int64_t batch, int64_t width, int64_t depth, int64_t skip_every, bool norm, bool swish,
                       float eps) {
        return StackShape{batch, width, rounded_up(width, kPad), depth, skip_every, norm, swish, eps};
      }))
      .def_readonly("padded", &StackShape::padded, "Columns of the saved activations.")
      .def_property_readonly("stretch", &stretch_layers, "Layers whose backward runs in one go.")
      .def_property_readonly("stretches", &stretches, "Their number, each with its input saved in fp32.");

  m.def("isa", [] { return isa().name; }, "The instruction set that serves here.");

  m.def(
      "residual_stack_forward",
      [](const StackShape& shape, std::array<uintptr_t, 5> in, std::array<uintptr_t, 3> out, int threads) {
        const auto [x, weight, bias, gamma, beta] = in;
        const Saved saved = saved_at(shape, out[1], out[2]);
        isa();
        py::gil_scoped_release unlocked;
        stack_forward(shape, {at<float>(weight), at<float>(bias), at<float>(gamma), at<float>(beta)},
                      at<float>(x), at<float>(out[0]), saved, threads);
      },
      "Addresses of (x, weight, bias, gamma, beta), of (y, activations, statistics), and the number of "
      "threads.");

  m.def(
      "residual_stack_backward",
      [](const StackShape& shape, std::array<uintptr_t, 7> in, std::array<uintptr_t, 5> out, int threads) {
        const auto [dy, weight, bias, gamma, beta, n, statistics] = in;
        const auto [dx, dweight, dbias, dgamma, dbeta] = out;
        py::gil_scoped_release unlocked;
        stack_backward(
            shape, {at<float>(weight), at<float>(bias), at<float>(gamma), at<float>(beta)}, at<float>(dy),
            saved_at(shape, n, statistics),
            {at<float>(dx), at<float>(dweight), at<float>(dbias), at<float>(dgamma), at<float>(dbeta)},
            threads);
      },
      "Addresses of (dy, weight, bias, gamma, beta, activations, statistics), of the five gradients (0: "
      "unwanted), "
      "and the number of threads.");
}

}  // namespace deepres
