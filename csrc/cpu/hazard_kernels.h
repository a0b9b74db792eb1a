// The functions of hazard.h for one vector width.
//
// Included once by each hazard_<instruction set>.cpp, inside that file's target pragma, after DEEPRES_LANES
// is set. Everything here is local to the including file.
#pragma once

#include "cpu/hazard.h"
#include "cpu/vec.h"

namespace deepres {
namespace {

using namespace hazard;

constexpr int64_t kColumns = kLanes == 16 ? 4 : 2;  // vectors to a register tile of a product
constexpr int64_t kGroup = 6;                       // and rows

struct Logistic {
  Floats sigmoid, softplus;  // 1 / (1 + exp(-x)) and log(1 + exp(x)) of the same x
};

DEEPRES_INLINE Logistic logistic(Floats x) {
  const Floats e = exponential(x > 0.0f ? -x : x);
  const Floats r = reciprocal(1.0f + e);
  return {x > 0.0f ? r : e * r, (x > 0.0f ? x : Floats{}) + log_one_plus(e)};
}

// sum += x, keeping in `excess` what the addition put in too much; nothing where the sum is infinite.
DEEPRES_INLINE void add(Floats& high, Floats& excess, Floats x) {
  const Floats y = x - excess, t = high + y;
  excess = keep((t - high) - y, t - t == 0.0f);
  high = t;
}

template <int64_t kVecs, int64_t kCount>
DEEPRES_INLINE void register_tile(int64_t terms, const float* a, int64_t a_row, int64_t a_term,
                                  const float* b, int64_t b_row, float* out, int64_t out_row) {
  Floats sums[kCount][kVecs] = {};
  for (int64_t t = 0; t < terms; ++t) {
    Floats x[kVecs];
    DEEPRES_UNROLL
    for (int64_t v = 0; v < kVecs; ++v) x[v] = load(b + t * b_row + v * kLanes);
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kCount; ++i) {
      const Floats s = splat(a[i * a_row + t * a_term]);
      DEEPRES_UNROLL
      for (int64_t v = 0; v < kVecs; ++v) sums[i][v] += s * x[v];
    }
  }
  DEEPRES_UNROLL
  for (int64_t i = 0; i < kCount; ++i) {
    DEEPRES_UNROLL
    for (int64_t v = 0; v < kVecs; ++v) {
      float* to = out + i * out_row + v * kLanes;
      store(to, load(to) + sums[i][v]);
    }
  }
}

template <int64_t kVecs>
DEEPRES_INLINE void column_panel(int64_t count, int64_t terms, const float* a, int64_t a_row, int64_t a_term,
                                 const float* b, int64_t b_row, float* out, int64_t out_row) {
  int64_t i = 0;
  for (; i + kGroup <= count; i += kGroup)
    register_tile<kVecs, kGroup>(terms, a + i * a_row, a_row, a_term, b, b_row, out + i * out_row, out_row);
  for (; i + 2 <= count; i += 2)
    register_tile<kVecs, 2>(terms, a + i * a_row, a_row, a_term, b, b_row, out + i * out_row, out_row);
  for (; i < count; ++i)
    register_tile<kVecs, 1>(terms, a + i * a_row, a_row, a_term, b, b_row, out + i * out_row, out_row);
}

void product(int64_t count, int64_t cols, int64_t terms, const float* a, int64_t a_row, int64_t a_term,
             const float* b, int64_t b_row, float* out, int64_t out_row) {
  int64_t c = 0;
  for (; c + kColumns * kLanes <= cols; c += kColumns * kLanes)
    column_panel<kColumns>(count, terms, a, a_row, a_term, b + c, b_row, out + c, out_row);
  for (; c < cols; c += kLanes)
    column_panel<1>(count, terms, a, a_row, a_term, b + c, b_row, out + c, out_row);
}

DEEPRES_INLINE Ints load_ints(const int32_t* p) {
  Ints v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

void nll(int64_t first, int64_t last, const Labels& labels, float* tile, Sums nll) {
  for (int64_t r = 0; r < kRows; r += kLanes) {
    const Ints survived = load_ints(labels.survived + r), hit = load_ints(labels.hit + r);
    const Floats scale = load(labels.scale + r);
    Floats high = load(nll.high + r), excess = load(nll.excess + r);
    for (int64_t k = first; k < last; ++k) {
      float* at = tile + k * kRows + r;
      const Ints bin = Ints{} + static_cast<int32_t>(k);
      const Ints here = bin == hit, counts = (bin < survived) | here;
      const Floats x = load(at);
      const Logistic one = logistic(here ? -x : x);
      add(high, excess, keep(one.softplus, counts));
      store(at, keep((here ? -one.sigmoid : one.sigmoid) * scale, counts));
    }
    store(nll.high + r, high);
    store(nll.excess + r, excess);
  }
}

bool survive(int64_t first, int64_t last, const float* discount, float* tile, float* discounted,
             Sums log_survival, Sums total) {
  Ints alive{};
  for (int64_t r = 0; r < kRows; r += kLanes) {
    Floats log_high = load(log_survival.high + r), log_excess = load(log_survival.excess + r);
    Floats high = load(total.high + r), excess = load(total.excess + r);
    for (int64_t k = first; k < last; ++k) {
      float* at = tile + k * kRows + r;
      const Floats s = exponential(log_high), term = (s - s * log_excess) * discount[k];
      store(discounted + k * kRows + r, term);
      add(high, excess, term);
      const Logistic one = logistic(load(at));
      store(at, one.sigmoid);
      add(log_high, log_excess, -one.softplus);
    }
    store(log_survival.high + r, log_high);
    store(log_survival.excess + r, log_excess);
    store(total.high + r, high);
    store(total.excess + r, excess);
    alive |= ~(log_high < -87.0f);  // a row with NaN goes on
  }
  int32_t any = 0;
  for (int64_t i = 0; i < kLanes; ++i) any |= alive[i];
  return any != 0;
}

void value_gradients(int64_t last, const float* scale, const float* discounted, float* tile) {
  for (int64_t r = 0; r < kRows; r += kLanes) {
    const Floats factor = load(scale + r);
    Floats high{}, excess{};
    for (int64_t k = last - 1; k >= 0; --k) {
      float* at = tile + k * kRows + r;
      store(at, load(at) * (high - excess) * factor);
      add(high, excess, load(discounted + k * kRows + r));
    }
  }
}

void row_sums(int64_t count, const float* tile, float* out) {
  for (int64_t k = 0; k < count; ++k) {
    Floats all{};
    for (int64_t r = 0; r < kRows; r += kLanes) all += load(tile + k * kRows + r);
    out[k] += sum(all);
  }
}

}  // namespace
}  // namespace deepres
