// Hazards on the CPU: negative log-likelihood and value of a discrete-time survival model, and their
// gradients, with no [B, K] tensor anywhere.
//
//   rows are put in the order of how many bins they need, the most first, and cut into blocks of kRows
//   sweep over strips of blocks; in a strip
//     blocks     shared out among the threads: logits, what they say (hazard_kernels.h), gradients of the
//     rows weights    bins shared out among the threads: dbasis and dbias, a block after the other
//
// A block goes no further than the bins that one of its rows needs: the event, the end of what was observed,
// or where nothing survives that fp32 can tell from 0. Every number is summed by one thread in an order that
// no thread count changes.

#include "cpu/hazard.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu/isa.h"
#include "cpu/memory.h"

namespace deepres::hazard {
namespace {

constexpr int64_t kChunk = 48;  // bins between two looks at who survives, and of dbasis to a thread's turn
constexpr float kDead = 1e3f;   // a logit that survives nothing, for the lanes of a block that are no rows

double softplus(double x) { return std::max(x, 0.0) + std::log1p(std::exp(-std::abs(x))); }
double sigmoid(double x) { return x > 0 ? 1 / (1 + std::exp(-x)) : std::exp(x) / (1 + std::exp(x)); }

struct Problem {
  const float *features, *basis, *bias, *l0;  // [b, d], [k, d], [k], [b]
  int64_t b, k, d;
};

struct Gradients {
  float *features, *basis, *bias, *l0;  // of the same shapes; basis and bias zeros; null where not asked for
};

// One op over the batch; see the head of the file.
class Sweep {
 public:
  Sweep(const Problem& problem, const Kernels& kernels, int threads, const Gradients& gradients, int tiles)
      : p_(problem),
        k_(kernels),
        threads_(threads),
        out_(gradients),
        blocks_((p_.b + kRows - 1) / kRows),
        strip_(std::min<int64_t>(blocks_, 2 * threads)),
        tiles_(tiles),
        memory_(static_cast<size_t>(strip_ * room()) * sizeof(float)),
        order_(p_.b),
        extents_(blocks_) {
    std::iota(order_.begin(), order_.end(), int64_t{0});
  }

  // body(first row in order_, rows, block's Room) gives the bins that the block's rows needed.
  template <class Body>
  void run(Body&& body) {
    const int64_t chunks = (p_.k + kChunk - 1) / kChunk;
#pragma omp parallel num_threads(threads_)
    for (int64_t start = 0; start < blocks_; start += strip_) {
      const int64_t end = std::min(start + strip_, blocks_);
#pragma omp for schedule(dynamic)
      for (int64_t block = start; block < end; ++block) {
        const Room own = room_of(block);
        const int64_t first = block * kRows, rows = std::min(kRows, p_.b - first);
        gather(first, rows, own);
        extents_[block] = body(first, rows, own);
        if (out_.features) row_gradients(first, rows, extents_[block], own);
      }
      if (!out_.basis && !out_.bias) continue;
#pragma omp for schedule(dynamic)
      for (int64_t chunk = 0; chunk < chunks; ++chunk)
        for (int64_t block = start; block < end; ++block) weight_gradients(chunk * kChunk, block);
    }
  }

 protected:
  struct Room {
    float *rows, *lanes;   // the block's features, [kRows, d] and [d, kRows]
    float *tile, *second;  // [k, kRows]
    float* sums;           // [8, kRows]
    int32_t* marks;        // [2, kRows]
  };

  void sort_by(const std::vector<int64_t>& extent) {
    std::stable_sort(order_.begin(), order_.end(),
                     [&](int64_t one, int64_t other) { return extent[one] > extent[other]; });
  }

  void logits(int64_t first, int64_t last, const Room& own) const {
    for (int64_t k = first; k < last; ++k) std::fill_n(own.tile + k * kRows, kRows, p_.bias[k]);
    for (int64_t f = 0; f < p_.d; f += kTerms)
      k_.product(last - first, kRows, std::min(kTerms, p_.d - f), p_.basis + first * p_.d + f, p_.d, 1,
                 own.lanes + f * kRows, kRows, own.tile + first * kRows, kRows);
  }

  const Problem p_;
  const Kernels& k_;
  const int threads_;
  const Gradients out_;

 private:
  int64_t room() const { return 2 * kRows * p_.d + tiles_ * p_.k * kRows + 10 * kRows; }
  Room room_of(int64_t block) const {
    Room own;
    own.rows = static_cast<float*>(memory_.data()) + block % strip_ * room();
    own.lanes = own.rows + kRows * p_.d;
    own.tile = own.lanes + kRows * p_.d;
    own.second = own.tile + (tiles_ - 1) * p_.k * kRows;
    own.sums = own.tile + tiles_ * p_.k * kRows;
    own.marks = reinterpret_cast<int32_t*>(own.sums + 8 * kRows);
    return own;
  }

  void gather(int64_t first, int64_t rows, const Room& own) const {
    for (int64_t r = 0; r < kRows; ++r) {
      float* to = own.rows + r * p_.d;
      if (r < rows)
        std::copy_n(p_.features + order_[first + r] * p_.d, p_.d, to);
      else
        std::fill_n(to, p_.d, 0.f);
    }
    for (int64_t f = 0; f < p_.d; ++f)
      for (int64_t r = 0; r < kRows; ++r) own.lanes[f * kRows + r] = own.rows[r * p_.d + f];
  }

  // dfeatures = G @ basis; own.lanes, no longer needed, holds it by lanes.
  void row_gradients(int64_t first, int64_t rows, int64_t extent, const Room& own) const {
    std::fill_n(own.lanes, p_.d * kRows, 0.f);
    for (int64_t k = 0; k < extent; k += kTerms)
      k_.product(p_.d, kRows, std::min(kTerms, extent - k), p_.basis + k * p_.d, 1, p_.d,
                 own.tile + k * kRows, kRows, own.lanes, kRows);
    for (int64_t r = 0; r < rows; ++r) {
      float* to = out_.features + order_[first + r] * p_.d;
      for (int64_t f = 0; f < p_.d; ++f) to[f] = own.lanes[f * kRows + r];
    }
  }

  void weight_gradients(int64_t first, int64_t block) const {
    const int64_t count = std::min(kChunk, extents_[block] - first);
    if (count <= 0) return;
    const Room own = room_of(block);
    const float* tile = own.tile + first * kRows;
    if (out_.basis)
      k_.product(count, p_.d, kRows, tile, kRows, 1, own.rows, p_.d, out_.basis + first * p_.d, p_.d);
    if (out_.bias) k_.row_sums(count, tile, out_.bias + first);
  }

  const int64_t blocks_, strip_, tiles_;
  Memory memory_;

 protected:
  std::vector<int64_t> order_;  // rows of the batch, in the order of the sweep

 private:
  std::vector<int64_t> extents_;  // of each block: the bins that its rows need
};

static_assert(kRows <= kTerms, "a block's rows are summed in one go");

class Nll : Sweep {
 public:
  Nll(const Problem& problem, const Kernels& kernels, int threads, const Gradients& gradients)
      : Sweep(problem, kernels, threads, gradients, 1) {}

  // lag, event, weight [b]; writes loss [1] and nll [b].
  void run(const int64_t* lag, const bool* event, const float* weight, float* loss, float* nll) {
    double total = 0;
    for (int64_t i = 0; i < p_.b; ++i) total += weight[i];
    const double share = total > 0 ? 1 / total : 0;
    std::vector<int64_t> extent(p_.b);
    for (int64_t i = 0; i < p_.b; ++i)
      extent[i] = std::clamp(hits(i, lag, event) ? lag[i] + 1 : lag[i], int64_t{0}, p_.k);
    sort_by(extent);
    Sweep::run([&](int64_t first, int64_t rows, const Room& own) {
      int32_t *survived = own.marks, *hit = own.marks + kRows;
      float* scale = own.sums;
      const Sums sum{own.sums + kRows, own.sums + 2 * kRows};
      std::fill_n(survived, kRows, 0);
      std::fill_n(hit, kRows, -1);
      std::fill_n(own.sums, 3 * kRows, 0.f);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = order_[first + r];
        survived[r] = static_cast<int32_t>(std::clamp(lag[i], int64_t{0}, p_.k));
        if (hits(i, lag, event)) hit[r] = static_cast<int32_t>(lag[i]);
        scale[r] = static_cast<float>(weight[i] * share);
      }
      const int64_t last = extent[order_[first]];
      logits(0, last, own);
      k_.nll(0, last, {survived, hit, scale}, own.tile, sum);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = order_[first + r];
        const double sign = event[i] && lag[i] == 0 ? -1 : 1, x = sign * p_.l0[i];
        nll[i] = static_cast<float>(softplus(x) + (static_cast<double>(sum.high[r]) - sum.excess[r]));
        if (out_.l0) out_.l0[i] = static_cast<float>(sign * sigmoid(x) * weight[i] * share);
      }
      return last;
    });
    double mean = 0;
    for (int64_t i = 0; i < p_.b; ++i) mean += nll[i] * (weight[i] * share);
    *loss = static_cast<float>(mean);
  }

 private:
  // Whether row i's event is in one of the bins.
  bool hits(int64_t i, const int64_t* lag, const bool* event) const {
    return event[i] && lag[i] > 0 && lag[i] < p_.k;
  }
};

class Value : Sweep {
 public:
  Value(const Problem& problem, const Kernels& kernels, int threads, const Gradients& gradients)
      : Sweep(problem, kernels, threads, gradients, 2) {}

  // discount [k]; weight [b], or null for ones; writes value [b].
  void run(const float* discount, const float* weight, float* value) {
    const bool gradients = out_.features || out_.basis || out_.bias;
    Sweep::run([&](int64_t first, int64_t rows, const Room& own) {
      float* scale = own.sums;
      const Sums log_survival{own.sums + kRows, own.sums + 2 * kRows};
      const Sums total{own.sums + 3 * kRows, own.sums + 4 * kRows};
      std::fill_n(own.sums, 5 * kRows, 0.f);
      std::fill_n(log_survival.high, kRows, -kDead);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = order_[first + r];
        const double start = -softplus(p_.l0[i]);
        log_survival.high[r] = static_cast<float>(start);
        log_survival.excess[r] = std::isinf(start) ? 0.f : static_cast<float>(log_survival.high[r] - start);
        scale[r] = weight ? weight[i] : 1.f;
      }
      int64_t last = 0;
      for (bool alive = true; alive && last < p_.k;) {
        const int64_t begin = last;
        last = std::min(begin + kChunk, p_.k);
        logits(begin, last, own);
        alive = k_.survive(begin, last, discount, own.tile, own.second, log_survival, total);
      }
      if (gradients) k_.value_gradients(last, scale, own.second, own.tile);
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t i = order_[first + r];
        const double sum = static_cast<double>(total.high[r]) - total.excess[r];
        value[i] = static_cast<float>(-sum);
        if (out_.l0) out_.l0[i] = static_cast<float>(sigmoid(p_.l0[i]) * sum * scale[r]);
      }
      return last;
    });
  }
};

const Kernels& kernels() { return DEEPRES_WIDEST(kGeneric, kAvx2, kAvx512); }

}  // namespace
}  // namespace deepres::hazard

namespace deepres {

void bind_hazard(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace hazard;
  using Addresses = std::vector<uintptr_t>;
  using Shape = std::array<int64_t, 3>;
  const auto at = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
  const auto problem = [=](const Addresses& in, const Shape& shape) {
    return Problem{at(in[0]), at(in[1]), at(in[2]), at(in[3]), shape[0], shape[1], shape[2]};
  };
  const auto gradients = [=](const Addresses& out) {
    return Gradients{at(out[0]), at(out[1]), at(out[2]), at(out[3])};
  };
  m.def(
      "hazard_nll",
      [=](const Addresses& in, const Shape& shape, int threads, const Addresses& results,
          const Addresses& out) {
        const Kernels& chosen = kernels();
        py::gil_scoped_release release;
        Nll(problem(in, shape), chosen, threads, gradients(out))
            .run(reinterpret_cast<const int64_t*>(in[4]), reinterpret_cast<const bool*>(in[5]), at(in[6]),
                 at(results[0]), at(results[1]));
      },
      "Addresses in: features, basis, bias, l0, lag, event, weight; results: loss [1], nll [b]; out: "
      "gradients of\n"
      "the first four, 0 where not wanted. shape: (b, k, d), d a multiple of 16. See kernels/hazard/cpu.py.");
  m.def(
      "hazard_value",
      [=](const Addresses& in, const Shape& shape, int threads, const Addresses& results,
          const Addresses& out) {
        const Kernels& chosen = kernels();
        py::gil_scoped_release release;
        Value(problem(in, shape), chosen, threads, gradients(out)).run(at(in[4]), at(in[5]), at(results[0]));
      },
      "As hazard_nll, with discount [k] and weight [b] (or 0: ones) behind l0, and value [b] as the result.");
}

}  // namespace deepres
