// InfoNCE on the CPU: loss, statistics and gradients, strip by strip, with no [B, M] tensor anywhere.
//
//   sweep over strips of rows of phi; in a strip, tiles are shared out among the threads:
//     logits       a tile each, and what it adds to the statistics of its rows
//     statistics   lse of the strip's rows, which are complete now; columns go on to the next strip
//     weights      logits become dL/dlogit * dlogit/ddistance, in place
//     gradients    dpsi a block of columns each, dphi a block of rows each
//
// Forms with a softmax over columns need one sweep for the statistics before one for the gradients; the
// others are done in one. Every number is summed by one thread in an order that no thread count changes, so
// work may be handed out as threads ask for it: a thread that the system has put aside delays nobody else.

#include "info_nce.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "cpu/isa.h"

namespace deepres::nce {
namespace {

constexpr int64_t kStripFloats = int64_t{1} << 20;  // 4 MB: a strip stays in the last-level cache
constexpr double kInsideSquare = 1e-6;              // the penalty is (lse + 1e-6)^2

int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

// An uninitialised array, aligned to cache lines.
template <typename T>
class Array {
 public:
  explicit Array(int64_t n) : data_(static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t{64}))) {}
  T* get() const { return data_.get(); }
  T& operator[](int64_t i) const { return data_.get()[i]; }

 private:
  struct Free {
    void operator()(T* p) const { ::operator delete(p, std::align_val_t{64}); }
  };
  std::unique_ptr<T, Free> data_;
};

struct Problem {
  const float *phi, *psi;   // [b, d], [m, d]
  int64_t b, m, d, offset;  // row i's positive is goal offset + i
  Energy energy;
  Form form;
  double penalty;
};

struct RowLog {
  double lse, scale, positive, total, softplus;  // scale: row_scale before rounding
  bool first;                                    // no goal scores higher than the row's own
};

class InfoNce {
 public:
  InfoNce(const Problem& problem, const Kernels& kernels, int threads, float* dphi, float* dpsi)
      : p_(problem),
        k_(kernels),
        threads_(threads),
        dphi_(dphi),
        dpsi_(dpsi),
        row_tiles_(tiles_of(p_.b, kTileRows)),
        col_tiles_(tiles_of(p_.m, kTileCols)),
        strip_(std::clamp(kStripFloats / (col_tiles_ * kTile), int64_t{1}, row_tiles_)),
        tiles_(strip_ * col_tiles_ * kTile),
        panels_(col_tiles_ * kTileCols * p_.d),
        partial_floats_(2 * strip_ * kTileRows * col_tiles_),
        partial_doubles_(2 * strip_ * kTileRows * col_tiles_),
        near_(strip_ * col_tiles_ * kTileBlocks),
        phi_squares_(row_tiles_ * kTileRows),
        psi_squares_(col_tiles_ * kTileCols),
        row_largest_(row_tiles_ * kTileRows),
        row_scale_(row_tiles_ * kTileRows),
        rows_(p_.b),
        col_largest_(col_softmax() ? col_tiles_ * kTileCols : 0),
        col_sum_(col_softmax() ? col_tiles_ * kTileCols : 0),
        col_scale_(col_softmax() ? col_tiles_ * kTileCols : 0) {
    if (!col_softmax()) return;
    std::fill_n(col_largest_.get(), col_tiles_ * kTileCols, -INFINITY);
    std::fill_n(col_sum_.get(), col_tiles_ * kTileCols, 0.f);
  }

  // loss [1]; lse [b]; metrics [3]: accuracy, mean positive and mean negative logit.
  void run(float* loss, float* lse, float* metrics) {
    const bool gradients = dphi_ || dpsi_;
    sweep(true, gradients && !col_softmax());
    double col_loss = 0;
    if (col_softmax()) {
      col_loss = finish_columns();
      if (gradients) sweep(false, true);
    }
    summarise(col_loss, loss, lse, metrics);
  }

 private:
  bool col_softmax() const { return p_.form == Form::kBackward || p_.form == Form::kSymmetric; }
  double row_share() const { return p_.form == Form::kForward || p_.form == Form::kSymmetric ? 1 : 0; }
  double pairs() const { return static_cast<double>(p_.b) * static_cast<double>(p_.m); }
  int64_t rows_in(int64_t row_tile) const { return std::min(kTileRows, p_.b - row_tile * kTileRows); }
  int64_t cols_in(int64_t col_tile) const { return std::min(kTileCols, p_.m - col_tile * kTileCols); }
  float* tile(int64_t row_tile, int64_t col_tile) const {
    return tiles_.get() + ((row_tile % strip_) * col_tiles_ + col_tile) * kTile;
  }
  bool* near(int64_t row_tile, int64_t col_tile) const {
    return near_.get() + ((row_tile % strip_) * col_tiles_ + col_tile) * kTileBlocks;
  }
  // The logit (later: the weight) of row i's own goal, in the strip that holds row i.
  float* positive(int64_t i) const {
    const int64_t j = p_.offset + i;
    return tile(i / kTileRows, j / kTileCols) + (i % kTileRows) * kTileCols + j % kTileCols;
  }
  bool holds_positives(int64_t col_tile) const {
    return (col_tile + 1) * kTileCols > p_.offset && col_tile * kTileCols < p_.offset + p_.b;
  }
  // Entry of row `row` of the strip for column tile 0; the next column tile's entry follows.
  Partials partials(int64_t row) const {
    const int64_t at = row * col_tiles_, step = strip_ * kTileRows * col_tiles_;
    return {&partial_floats_[at], &partial_floats_[at + step], &partial_doubles_[at],
            &partial_doubles_[at + step]};
  }

  void sweep(bool statistics, bool gradients) {
#pragma omp parallel num_threads(threads_)
    {
      if (statistics) pack();  // the first sweep of a call
      for (int64_t first = 0; first < row_tiles_; first += strip_) {
        const int64_t last = std::min(first + strip_, row_tiles_);
        logits(first, last, statistics);
        if (statistics) finish_rows(first, last);
        if (statistics && col_softmax()) update_columns(first, last);
        if (gradients) {
          weights(first, last);
          if (dpsi_) accumulate_dpsi(first, last);
          if (dphi_) accumulate_dphi(first, last);
        }
      }
    }
  }

  // The steps of a sweep. Each is entered by all threads, shares its loop among them and ends in a barrier.

  void pack() {
#pragma omp for schedule(dynamic) nowait
    for (int64_t c = 0; c < col_tiles_; ++c) {
      k_.pack(p_.psi + c * kTileCols * p_.d, cols_in(c), p_.d, panels_.get() + c * kTileCols * p_.d);
      k_.square(p_.psi + c * kTileCols * p_.d, cols_in(c), p_.d, &psi_squares_[c * kTileCols]);
    }
#pragma omp for schedule(dynamic)
    for (int64_t r = 0; r < row_tiles_; ++r)
      k_.square(p_.phi + r * kTileRows * p_.d, rows_in(r), p_.d, &phi_squares_[r * kTileRows]);
  }

  void logits(int64_t first, int64_t last, bool statistics) {
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t r = first; r < last; ++r)
      for (int64_t c = 0; c < col_tiles_; ++c) {
        k_.logits(p_.energy, p_.phi + r * kTileRows * p_.d, rows_in(r), panels_.get() + c * kTileCols * p_.d,
                  cols_in(c), p_.d, tile(r, c));
        if (!statistics) continue;
        Partials out = partials((r - first) * kTileRows);
        out = {out.largest + c, out.sum + c, out.total + c, out.softplus + c};
        k_.row_partials(tile(r, c), rows_in(r), cols_in(c), p_.form == Form::kBinary, out, col_tiles_);
      }
  }

  void finish_rows(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic, 32)
    for (int64_t i = first * kTileRows; i < std::min(last * kTileRows, p_.b); ++i) {
      const RowSums sums = k_.row_sums(partials(i - first * kTileRows), col_tiles_);
      const double lse = sums.largest + std::log(sums.sum);
      const double share = (row_share() + 2 * p_.penalty * (lse + kInsideSquare)) / static_cast<double>(p_.b);
      row_largest_[i] = sums.largest;
      row_scale_[i] = static_cast<float>(share / sums.sum);
      rows_[i] = {lse,        share / sums.sum, *positive(i),
                  sums.total, sums.softplus,    *positive(i) >= sums.largest};
    }
  }

  void update_columns(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic)
    for (int64_t c = 0; c < col_tiles_; ++c)
      for (int64_t r = first; r < last && holds_positives(c); ++r)
        k_.col_sums(tile(r, c), rows_in(r), &col_largest_[c * kTileCols], &col_sum_[c * kTileCols]);
  }

  // Turns the sums over columns into scales, 0 for goals that are nobody's own; returns the columns' loss.
  double finish_columns() {
    double loss = 0;
    for (int64_t j = 0; j < col_tiles_ * kTileCols; ++j) {
      const int64_t i = j - p_.offset;
      if (i < 0 || i >= p_.b) {
        col_largest_[j] = INFINITY;
        col_scale_[j] = 0;
        continue;
      }
      loss += col_largest_[j] + std::log(static_cast<double>(col_sum_[j])) - rows_[i].positive;
      col_scale_[j] = static_cast<float>(col_share(j));
    }
    return loss / static_cast<double>(p_.b);
  }

  // d(column loss) / d(logit), for the largest logit of column j.
  double col_share(int64_t j) const {
    return 1 / (static_cast<double>(col_sum_[j]) * static_cast<double>(p_.b));
  }

  void weights(int64_t first, int64_t last) {
    const bool rows = row_share() > 0 || p_.penalty > 0;
    const float binary = p_.form == Form::kBinary ? static_cast<float>(1 / pairs()) : 0.f;
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t r = first; r < last; ++r)
      for (int64_t c = 0; c < col_tiles_; ++c) {
        const Softmaxes softmaxes{&row_largest_[r * kTileRows], rows ? &row_scale_[r * kTileRows] : nullptr,
                                  col_softmax() ? &col_largest_[c * kTileCols] : nullptr,
                                  col_softmax() ? &col_scale_[c * kTileCols] : nullptr, binary};
        const Squares squares{&phi_squares_[r * kTileRows], &psi_squares_[c * kTileCols]};
        k_.weights(p_.energy, softmaxes, squares, rows_in(r), tile(r, c), near(r, c));
        const int64_t begin = std::max(r * kTileRows, c * kTileCols - p_.offset);
        const int64_t end = std::min({(r + 1) * kTileRows, (c + 1) * kTileCols - p_.offset, p_.b});
        for (int64_t i = begin; i < end; ++i) *positive(i) = positive_weight(i);
      }
  }

  // The weight of row i and its own goal, in double: what the softmaxes give there and the -1 nearly cancel.
  float positive_weight(int64_t i) const {
    const double s = rows_[i].positive, b = static_cast<double>(p_.b);
    double g = rows_[i].scale * std::exp(s - row_largest_[i]);
    if (row_share() > 0) g -= 1 / b;
    if (col_softmax()) {
      const int64_t j = p_.offset + i;
      g += col_share(j) * std::exp(s - col_largest_[j]) - 1 / b;
    }
    if (p_.form == Form::kBinary) g -= 1 / (1 + std::exp(s)) / pairs();
    if (p_.energy == Energy::kNorm) return s == 0 ? 0.f : static_cast<float>(g / s);
    return static_cast<float>(p_.energy == Energy::kL2 ? -2 * g : g);
  }

  void accumulate_dpsi(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic) nowait
    for (int64_t j = 0; j < p_.m; j += kBlockCols)
      for (int64_t r = first; r < last; ++r) {
        const int64_t inside = j % kTileCols;
        const bool* flags = near(r, j / kTileCols) + inside / kBlockCols;
        for_runs(flags, kTileCols / kBlockCols, kBlockRows, rows_in(r), [&](int64_t i, int64_t n, bool near) {
          k_.accumulate(p_.energy, near, p_.psi + j * p_.d, std::min(kBlockCols, p_.m - j),
                        p_.phi + (r * kTileRows + i) * p_.d, n, p_.d,
                        tile(r, j / kTileCols) + i * kTileCols + inside, 1, kTileCols, dpsi_ + j * p_.d);
        });
      }
    if (!dphi_) {
#pragma omp barrier
    }
  }

  void accumulate_dphi(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic)
    for (int64_t i = first * kTileRows; i < std::min(last * kTileRows, p_.b); i += kBlockRows)
      for (int64_t c = 0; c < col_tiles_; ++c) {
        const int64_t r = i / kTileRows, inside = i % kTileRows;
        const bool* flags = near(r, c) + inside / kBlockRows * (kTileCols / kBlockCols);
        for_runs(flags, 1, kBlockCols, cols_in(c), [&](int64_t j, int64_t n, bool near) {
          k_.accumulate(p_.energy, near, p_.phi + i * p_.d, std::min(kBlockRows, p_.b - i),
                        p_.psi + (c * kTileCols + j) * p_.d, n, p_.d, tile(r, c) + inside * kTileCols + j,
                        kTileCols, 1, dphi_ + i * p_.d);
        });
      }
  }

  // f(begin, length, flag) for the runs of equal flags among n things, a flag to `block` of them.
  template <typename F>
  static void for_runs(const bool* flags, int64_t stride, int64_t block, int64_t n, F f) {
    for (int64_t begin = 0, end; begin < n; begin = end) {
      const bool flag = flags[begin / block * stride];
      for (end = begin; end < n && flags[end / block * stride] == flag;) end = std::min(end + block, n);
      f(begin, end - begin, flag);
    }
  }

  void summarise(double col_loss, float* loss, float* lse, float* metrics) const {
    double forward = 0, penalty = 0, positive = 0, total = 0, softplus = 0, first = 0;
    for (int64_t i = 0; i < p_.b; ++i) {
      const RowLog& row = rows_[i];
      lse[i] = static_cast<float>(row.lse);
      forward += row.lse - row.positive;
      penalty += (row.lse + kInsideSquare) * (row.lse + kInsideSquare);
      positive += row.positive;
      total += row.total;
      softplus += row.softplus;
      first += row.first;
    }
    const double b = static_cast<double>(p_.b);
    double out = p_.penalty * penalty / b + row_share() * forward / b + col_loss;
    if (p_.form == Form::kBinary) out += (softplus - positive) / pairs();
    *loss = static_cast<float>(out);
    metrics[0] = static_cast<float>(first / b);
    metrics[1] = static_cast<float>(positive / b);
    metrics[2] = static_cast<float>((total - positive) / (pairs() - b));  // NaN without negatives
  }

  const Problem p_;
  const Kernels& k_;
  const int threads_;
  float *const dphi_, *const dpsi_;              // [b, d], [m, d], zeros; null where not asked for
  const int64_t row_tiles_, col_tiles_, strip_;  // strip_ in row tiles
  Array<float> tiles_, panels_;                  // [strip_, col_tiles_] tiles; psi, packed
  Array<float> partial_floats_;                  // see Partials: 2 x [rows of a strip, col_tiles_]
  Array<double> partial_doubles_;
  Array<bool> near_;                        // [strip_, col_tiles_, kTileBlocks], see Kernels::weights
  Array<float> phi_squares_, psi_squares_;  // see Squares
  Array<float> row_largest_, row_scale_;    // see Softmaxes
  std::vector<RowLog> rows_;
  Array<float> col_largest_, col_sum_, col_scale_;
};

// The tiles of the widest vectors that the instruction set isa() has; throws as that does.
const Kernels& kernels() {
#if defined(__x86_64__)
  if (isa() >= Isa::kAvx512) return kAvx512;
  if (isa() >= Isa::kAvx2) return kAvx2;
#endif
  return kGeneric;
}

}  // namespace
}  // namespace deepres::nce

namespace deepres {

void bind_info_nce(pybind11::module_& m) {
  namespace py = pybind11;
  using namespace nce;
  m.def(
      "info_nce",
      [](uintptr_t phi, uintptr_t psi, int64_t b, int64_t goals, int64_t d, int64_t offset, int energy,
         int form, double penalty, int threads, std::array<uintptr_t, 5> out) {
        const Kernels& tiles = kernels();
        const auto at = [](uintptr_t address) { return reinterpret_cast<float*>(address); };
        const Problem problem{at(phi), at(psi), b, goals, d, offset, Energy(energy), Form(form), penalty};
        py::gil_scoped_release release;
        InfoNce(problem, tiles, threads, at(out[3]), at(out[4])).run(at(out[0]), at(out[1]), at(out[2]));
      },
      "Writes loss [1], lse [b], metrics [3], and adds to dphi [b, d], dpsi [m, d] (0 where not wanted).\n"
      "phi, psi, out: addresses; d: a multiple of 16; energy, form: see kernels/info_nce/cpu.py.");
}

}  // namespace deepres
