// The products of the residual stack by vector instructions: register tiles over packed panels.

#pragma once

#include <algorithm>
#include <type_traits>

#include "cpu/operands.h"
#include "cpu/residual_stack.h"
#include "cpu/vec.h"

namespace deepres {
namespace {

constexpr int64_t kRows = DEEPRES_ROWS;  // rows of a register tile
constexpr int64_t kLessRows = 4;         // and of those at the end, where kRows does not go into kPad

// The rows of kPad that tiles of kRows take: as many as leave whole smaller ones.
constexpr int64_t tall_rows() {
  int64_t rows = kPad / kRows * kRows;
  while ((kPad - rows) % kLessRows) rows -= kRows;
  return rows;
}
static_assert(kPad % (2 * kLanes) == 0 && kRowBlock == kPad && kPad % kLessRows == 0,
              "tiles must fit the padding");

// step(row, tile rows) for tiles from row 0 on until `rows` of at most kPad are covered.
template <class Step>
DEEPRES_INLINE void over_rows(int64_t rows, Step&& step) {
  for (int64_t row = 0; row < rows;) {
    const bool tall = row < tall_rows() && rows - row > kLessRows;
    if (tall)
      step(row, std::integral_constant<int64_t, kRows>());
    else
      step(row, std::integral_constant<int64_t, kLessRows>());
    row += tall ? kRows : kLessRows;
  }
}

// to [rows, width] = rows of `from`, whose stride is `padded`; this core will not read them soon.
inline void stream_rows(const StackShape& shape, const float* from, int64_t rows, float* to) {
  const int64_t width = shape.width, whole = width / kLanes * kLanes;
  for (int64_t i = 0; i < rows; ++i, from += shape.padded, to += width) {
    for (int64_t c = 0; c < whole; c += kLanes) stream(to + c, load(from + c));
    std::copy(from + whole, from + width, to + whole);
  }
}

// Products by vector instructions: register tiles of kRows x kPanel sums.
template <class O>
struct VectorProducts {
  static constexpr int64_t kPanel = 2 * kLanes;  // columns of a register tile, and of a panel of weights
  static constexpr int64_t kSide = kPad;         // and of the panels of a weight gradient
  static constexpr int64_t kLeftBytes = int64_t{1} << 30;  // no bound: memory keeps up with these products
  static constexpr int64_t kAhead = 12;                    // rows of a panel from the prefetch to the use

  // sum_j left_word(i, j) * right_row(j)[0 .. kPanel) for kCount values of i, handed to finish(i, low, high).
  template <int64_t kCount, class Left, class Right, class Finish>
  DEEPRES_INLINE static void tile(int64_t k, Left&& left_word, Right&& right_row, Finish&& finish) {
    Floats low[kCount] = {}, high[kCount] = {};
    for (int64_t j = 0; j < k; ++j) {
      const float* right = right_row(j);
      __builtin_prefetch(right_row(j + kAhead));
      if (kPanel > 16) __builtin_prefetch(right_row(j + kAhead) + 16);  // the next cache line
      const Floats b0 = load(right), b1 = load(right + kLanes);
      DEEPRES_UNROLL
      for (int64_t i = 0; i < kCount; ++i) {
        const Floats a = splat(left_word(i, j));
        low[i] = O::dot(low[i], a, b0);
        high[i] = O::dot(high[i], a, b1);
      }
    }
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kCount; ++i) finish(i, low[i], high[i]);
  }

  static constexpr int64_t kChunk =
      256;  // words of k added up before they join the others: shorter sums err less

  // c [rows, width] = a [rows, k words] @ packed + added. The sum comes first: small terms added one by one
  // to a large value would each be rounded at its scale. c has row stride `padded`, a `a_stride`.
  static void product(const StackShape& shape, int64_t rows, const float* a, int64_t a_stride,
                      const float* packed, int64_t k, const float* added, int64_t added_stride, float* c) {
    for (int64_t column = 0; column < shape.width; column += kPanel) {
      const float* panel = packed + column * k;
      over_rows(rows, [=](int64_t row, auto count) DEEPRES_LAMBDA {
        float* out = c + row * shape.padded + column;
        for (int64_t first = 0; first < k; first += kChunk) {
          const float *left = a + row * a_stride + first, *right = panel + first * kPanel;
          const float* plus = first ? out : added + row * added_stride + column;
          const int64_t plus_stride = first ? shape.padded : added_stride;
          tile<count()>(
              std::min(kChunk, k - first),
              [=](int64_t i, int64_t j) DEEPRES_LAMBDA { return left[i * a_stride + j]; },
              [=](int64_t j) DEEPRES_LAMBDA { return right + j * kPanel; },
              [=](int64_t i, Floats low, Floats high) DEEPRES_LAMBDA {
                store(out + i * shape.padded, low + load(plus + i * plus_stride));
                store(out + i * shape.padded + kLanes, high + load(plus + i * plus_stride + kLanes));
              });
        }
      });
    }
  }

  static constexpr int64_t kBatchWords = 128;  // rows of panels that stay in L1 together

  // out [rows, width] = a^T du over the words of a panel of a and of all panels of du; rows is at most kPad.
  static void outer(const StackShape& shape, const float* a, const float* du, int64_t words, int64_t rows,
                    float* work, float* out) {
    const bool direct = words && rows == kPad && shape.width % kPanel == 0;
    const float* zeros = work + work_size(shape) - shape.padded;
    for (int64_t word = 0; word < words; word += kBatchWords) {
      const int64_t count = std::min(kBatchWords, words - word);
      const bool last = word + count == words;
      for (int64_t column = 0; column < shape.width; column += kPanel) {
        over_rows(kPad, [=](int64_t row, auto rows_of_tile) DEEPRES_LAMBDA {
          const float* left = a + word * kPad + row;
          const float* right = du + (column / kPad * words + word) * kPad + column % kPad;
          float *sums = work + row * shape.padded + column, *to = out + row * shape.width + column;
          const float* plus = word ? sums : zeros;
          const int64_t plus_stride = word ? shape.padded : 0;
          const auto left_word = [=](int64_t i, int64_t j) DEEPRES_LAMBDA { return left[j * kPad + i]; };
          const auto right_row = [=](int64_t j) DEEPRES_LAMBDA { return right + j * kPad; };
          if (last && direct) {
            tile<rows_of_tile()>(
                count, left_word, right_row, [=](int64_t i, Floats low, Floats high) DEEPRES_LAMBDA {
                  stream(to + i * shape.width, low + load(plus + i * plus_stride));
                  stream(to + i * shape.width + kLanes, high + load(plus + i * plus_stride + kLanes));
                });
          } else {
            tile<rows_of_tile()>(
                count, left_word, right_row, [=](int64_t i, Floats low, Floats high) DEEPRES_LAMBDA {
                  store(sums + i * shape.padded, low + load(plus + i * plus_stride));
                  store(sums + i * shape.padded + kLanes, high + load(plus + i * plus_stride + kLanes));
                });
          }
        });
      }
    }
    if (!words) std::fill_n(work, rows * shape.padded, 0.0f);
    if (!direct) stream_rows(shape, work, rows, out);
    finish_streams();
  }
};

}  // namespace
}  // namespace deepres
