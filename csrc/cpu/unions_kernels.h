// The functions of unions.h for one vector width.
//
// Included once by each unions_<instruction set>.cpp, inside that file's target pragma, after DEEPRES_LANES
// is set. Everything here is local to the including file.
#pragma once

#include <algorithm>
#include <limits>

#include "cpu/unions.h"
#include "cpu/vec.h"

namespace deepres {
namespace {

using namespace unions;

// The intervals of kLanes parts: [i] holds interval i of each.
struct Intervals {
  Floats begin[kPart], end[kPart];
  Ints unknown;  // parts with a NaN, or with an interval that begins and ends at the same infinity
};

DEEPRES_INLINE void gather(const float* from, int64_t parts, Floats* to) {
  float side[kPart][kLanes] = {};
  for (int64_t p = 0; p < parts; ++p) {
    for (int64_t i = 0; i < kPart; ++i) side[i][p] = from[p * kPart + i];
  }
  for (int64_t i = 0; i < kPart; ++i) to[i] = load(side[i]);
}

DEEPRES_INLINE void scatter(const Floats* from, int64_t parts, float* to) {
  float side[kPart][kLanes];
  for (int64_t i = 0; i < kPart; ++i) store(side[i], from[i]);
  for (int64_t p = 0; p < parts; ++p) {
    for (int64_t i = 0; i < kPart; ++i) to[p * kPart + i] = side[i][p];
  }
}

// Of `parts` parts, at most kLanes; the other lanes hold empty intervals.
DEEPRES_INLINE Intervals intervals(const float* x, const float* y, int64_t parts) {
  Intervals of{};
  gather(x, parts, of.begin);
  gather(y, parts, of.end);
  DEEPRES_UNROLL
  for (int64_t i = 0; i < kPart; ++i) {
    const Ints nan = of.end[i] != of.end[i];
    of.end[i] = of.end[i] > of.begin[i] ? of.end[i] : of.begin[i];
    const Floats size = of.end[i] - of.begin[i];
    of.unknown |= nan | (size != size);
  }
  return of;
}

// Batcher's odd-even merge sort of eight.
constexpr int kExchanges[19][2] = {{0, 1}, {2, 3}, {4, 5}, {6, 7}, {0, 2}, {1, 3}, {4, 6},
                                   {5, 7}, {1, 2}, {5, 6}, {0, 4}, {1, 5}, {2, 6}, {3, 7},
                                   {2, 4}, {3, 5}, {1, 2}, {3, 4}, {5, 6}};

DEEPRES_INLINE void sort_by_begin(Intervals& of) {
  DEEPRES_UNROLL
  for (const auto& [i, j] : kExchanges) {
    const Ints late = of.begin[i] > of.begin[j];
    const Floats begin = of.begin[i], end = of.end[i];
    of.begin[i] = late ? of.begin[j] : begin;
    of.begin[j] = late ? begin : of.begin[j];
    of.end[i] = late ? of.end[j] : end;
    of.end[j] = late ? end : of.end[j];
  }
}

// Goes through the intervals from left to right and adds what each covers beyond those before it: near ends
// lose no digits.
inline void lengths(int64_t parts, const float* x, const float* y, float* out) {
  for (int64_t first = 0; first < parts; first += kLanes) {
    const int64_t count = std::min(kLanes, parts - first);
    Intervals of = intervals(x + first * kPart, y + first * kPart, count);
    sort_by_begin(of);
    Floats total{}, covered = of.begin[0];
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kPart; ++i) {
      const Floats piece = of.end[i] - (of.begin[i] > covered ? of.begin[i] : covered);
      total += piece > 0.0f ? piece : Floats{};
      covered = of.end[i] > covered ? of.end[i] : covered;
    }
    total = of.unknown ? splat(std::numeric_limits<float>::quiet_NaN()) : total;
    float lanes[kLanes];
    store(lanes, total);
    std::copy_n(lanes, count, out + first);
  }
}

// An interval begins its piece unless another one that begins before it reaches it, and ends its piece unless
// another one that it reaches ends after it. Of equal ones the first does. Empty ones do neither, and decide
// nothing of others.
inline void gradients(int64_t parts, const float* x, const float* y, const float* d, float* dx, float* dy) {
  for (int64_t first = 0; first < parts; first += kLanes) {
    const int64_t count = std::min(kLanes, parts - first);
    const Intervals of = intervals(x + first * kPart, y + first * kPart, count);
    Ints begins[kPart], ends[kPart];
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kPart; ++i) begins[i] = ends[i] = of.end[i] > of.begin[i];
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kPart; ++i) {
      DEEPRES_UNROLL
      for (int64_t j = i + 1; j < kPart; ++j) {
        const Floats a = of.begin[i], b = of.begin[j], u = of.end[i], v = of.end[j];
        begins[j] &= ~(((a < b) & (b <= u)) | ((a == b) & (u >= v)));
        begins[i] &= ~(((b < a) & (a <= v)) | ((a == b) & (v > u)));
        ends[j] &= ~(((a <= v) & (v < u)) | ((u == v) & (a <= b)));
        ends[i] &= ~(((b <= u) & (u < v)) | ((u == v) & (b < a)));
      }
    }
    float lanes[kLanes] = {};
    std::copy_n(d + first, count, lanes);
    const Floats g = load(lanes),
                 nothing = of.unknown ? splat(std::numeric_limits<float>::quiet_NaN()) : Floats{};
    Floats slopes[kPart];
    if (dx) {
      for (int64_t i = 0; i < kPart; ++i) slopes[i] = begins[i] ? -g + nothing : nothing;
      scatter(slopes, count, dx + first * kPart);
    }
    if (dy) {
      for (int64_t i = 0; i < kPart; ++i) slopes[i] = ends[i] ? g + nothing : nothing;
      scatter(slopes, count, dy + first * kPart);
    }
  }
}

}  // namespace
}  // namespace deepres
