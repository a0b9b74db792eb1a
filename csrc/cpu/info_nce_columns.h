// What the driver (info_nce_driver.cpp) keeps of rows, and the softmax over state-actions, a column each.
#pragma once

#include <algorithm>
#include <cmath>
#include <memory>
#include <new>
#include <vector>

#include "info_nce.h"

namespace deepres::nce {
namespace {

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

struct RowLog {
  double lse, scale, positive, total, softplus;  // scale: row_scale before rounding
  bool first;                                    // no goal scores higher than the row's own
  double weight, mass;                           // the row's weight, the sum of its targets; 1 without
  double columns;                                // loss of the own goal's softmax over state-actions
  float energy;                                  // of the row and its own goal
  double energy_sum, g_sum;                      // sum_j dL/dlogit energy, sum_j dL/dlogit
};

// One softmax for each goal that is somebody's own.
class Columns {
 public:
  // tiles: of columns; 0 where the form has no softmax over them.
  Columns(const Problem& problem, int64_t tiles)
      : p_(problem),
        largest_(tiles * kTileCols),
        sum_(tiles * kTileCols),
        scale_(tiles * kTileCols),
        weight_(tiles * kTileCols, 0.0) {
    std::fill_n(largest_.get(), tiles * kTileCols, -INFINITY);
    std::fill_n(sum_.get(), tiles * kTileCols, 0.f);
    for (int64_t i = 0; tiles && i < p_.b; ++i) weight_[p_.own(i)] += p_.weight(i);
  }

  const float* largest(int64_t j) const { return &largest_[j]; }
  const float* scale(int64_t j) const { return &scale_[j]; }

  // `rows` more rows of the columns from j on.
  void add(const Kernels& kernels, const float* tile, int64_t rows, const General* general, int64_t j) const {
    kernels.col_sums(tile, rows, general, &largest_[j], &sum_[j]);
  }

  // Turns sums into scales, 0 for goals that are nobody's own; returns the columns' loss.
  double finish(std::vector<RowLog>& rows) const {
    double loss = 0;
    for (int64_t i = 0; i < p_.b; ++i) {
      const int64_t j = p_.own(i);
      rows[i].columns = largest_[j] + std::log(static_cast<double>(sum_[j])) - rows[i].positive;
      loss += rows[i].weight * rows[i].columns;
    }
    for (size_t j = 0; j < weight_.size(); ++j) {
      if (weight_[j] == 0) largest_[j] = INFINITY;
      scale_[j] = weight_[j] == 0 ? 0.f : static_cast<float>(share(j));
    }
    return loss / p_.count();
  }

  // d(column loss) / d(logit) of a logit of column j, in double, but for its own goal's -1.
  double probability(int64_t j, double logit) const {
    return weight_[j] == 0 ? 0 : share(j) * std::exp(logit - largest_[j]);
  }

 private:
  double share(int64_t j) const { return weight_[j] / (static_cast<double>(sum_[j]) * p_.count()); }

  const Problem& p_;
  Array<float> largest_, sum_, scale_;
  std::vector<double> weight_;  // of the rows whose own goal it is
};

}  // namespace
}  // namespace deepres::nce
