// The residual stack for AMX: bf16 products on tiles of 16 x 16 sums, the rest by AVX-512. fp32 products are
// six bf16 ones, of planes whose places add up to at most 2 (SplitFp32): what the other three would add is
// 2^-26 of a product and less. The same products over plain arrays in place of tiles (kStackAmxPlain) let the
// tests check the layouts on processors without AMX.

#if defined(__x86_64__)
#include <immintrin.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__clang__)
#pragma clang attribute push(                                                                      \
    __attribute__((                                                                                \
        target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c"))), \
    apply_to = function)
#else
#pragma GCC target("avx512f,avx512dq,avx512bw,avx512vl,avx512bf16,amx-tile,amx-bf16,avx2,fma,f16c")
#pragma GCC target("prefer-vector-width=512")
#endif

#define DEEPRES_LANES 16
#define DEEPRES_ROWS 8
#define DEEPRES_BF16_PAIRS
#include "cpu/residual_stack_kernels.h"

namespace deepres {
namespace {

constexpr int64_t kTile = kGroupWords;  // rows, and words along k, of a tile

// 32 rows of 16 words; distances, in words, from row to row and from plane to plane.
struct Left {
  const float* first;
  int64_t stride, plane;

  const float* at(int64_t p) const { return first + p * plane; }
};

// 16 words along k of 32 columns: two tiles, `next` words apart, each followed by its other planes.
struct Right {
  const float* first;
  int64_t next;

  const float* at(int64_t p) const { return first + p * kTile * kTile; }
};

// 32 x 32 sums in tiles 0 to 3, and operands in 4 to 7. Strides are in words.
struct AmxBlock {
  AmxBlock() {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
      uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
    } config;
    _tile_loadconfig(&config);
  }
  ~AmxBlock() { _tile_release(); }

  void load(const float* c, int64_t stride) {
    _tile_loadd(0, c, stride * 4);
    _tile_loadd(1, c + kTile, stride * 4);
    _tile_loadd(2, c + kTile * stride, stride * 4);
    _tile_loadd(3, c + kTile * stride + kTile, stride * 4);
  }
  void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  // sums += a [32, 16 words] @ b [16 words, 32].
  void add(const Left& a, const Right& b) {
    load_left(a, 0);
    load_right(b, 0);
    multiply();
  }
  // The same for planes, the largest of the six products last.
  void add_planes(const Left& a, const Right& b) {
    load_left(a, 0);
    load_right(b, 2);
    multiply();
    load_right(b, 1);
    multiply();
    load_left(a, 1);
    multiply();
    load_right(b, 0);
    multiply();
    load_left(a, 2);
    multiply();
    load_left(a, 0);
    multiply();
  }
  void put(float* c, int64_t stride) const {
    _tile_stored(0, c, stride * 4);
    _tile_stored(1, c + kTile, stride * 4);
    _tile_stored(2, c + kTile * stride, stride * 4);
    _tile_stored(3, c + kTile * stride + kTile, stride * 4);
  }

 private:
  static void load_left(const Left& a, int64_t plane) {
    _tile_loadd(4, a.at(plane), a.stride * 4);
    _tile_loadd(5, a.at(plane) + kTile * a.stride, a.stride * 4);
  }
  static void load_right(const Right& b, int64_t plane) {
    _tile_loadd(6, b.at(plane), kTile * 4);
    _tile_loadd(7, b.at(plane) + b.next, kTile * 4);
  }
  static void multiply() {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
};

struct PlainBlock {
  float sums[2 * kTile][2 * kTile];

  void load(const float* c, int64_t stride) {
    for (int64_t i = 0; i < 2 * kTile; ++i) std::memcpy(sums[i], c + i * stride, sizeof sums[i]);
  }
  void clear() { std::memset(sums, 0, sizeof sums); }
  void add(const Left& a, const Right& b) { add_plane(a, 0, b, 0); }
  void add_planes(const Left& a, const Right& b) {
    constexpr int64_t kPairs[][2] = {{0, 2}, {0, 1}, {1, 1}, {1, 0}, {2, 0}, {0, 0}};
    for (const auto& pair : kPairs) add_plane(a, pair[0], b, pair[1]);
  }
  void add_plane(const Left& a, int64_t a_plane, const Right& b, int64_t b_plane) {
    for (int64_t i = 0; i < 2 * kTile; ++i) {
      for (int64_t half = 0; half < 2; ++half) {
        Floats tile{};  // as AMX does it: the terms of a tile come together first
        for (int64_t k = 0; k < kTile; ++k) {
          tile = PairedBf16::dot(tile, splat(a.at(a_plane)[i * a.stride + k]),
                                 deepres::load(b.at(b_plane) + half * b.next + k * kTile));
        }
        float* to = sums[i] + half * kTile;
        store(to, deepres::load(to) + tile);
      }
    }
  }
  void put(float* c, int64_t stride) const {
    for (int64_t i = 0; i < 2 * kTile; ++i) std::memcpy(c + i * stride, sums[i], sizeof sums[i]);
  }
};

// As VectorProducts, by blocks of 32 x 32 sums; rows are whole row blocks, so what lies past `rows` may be
// written.
template <class O, class Block>
struct TileProducts {
  // About what stays in L2: these products are faster than the memory beyond.
  static constexpr int64_t kLeftBytes = 1 << 20;
  static constexpr int64_t kPanel = kTile, kSide = kTile;  // columns of a panel
  static constexpr int64_t kStep = kTile * O::kPlanes;     // words along k of a block's step

  DEEPRES_INLINE static void add(Block& block, const Left& a, const Right& b) {
    if constexpr (O::kPlanes == 1) {
      block.add(a, b);
    } else {
      block.add_planes(a, b);
    }
  }

  static bool all_zero(const StackShape& shape, const float* row) {
    Ints any{};
    for (int64_t j = 0; j < shape.width; j += kLanes) any |= as_ints(load(row + j));
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(any), reinterpret_cast<__m512i>(any)) == 0;
  }

  // sums [width] += added. Returns whether a result of planes is to be made again: infinities and what
  // overflows make NaN of their planes' products, where fp32 has infinities.
  DEEPRES_INLINE static bool finish_row(const StackShape& shape, const float* added, float* sums) {
    Floats zero{};
    for (int64_t j = 0; j < shape.width; j += kLanes) {
      const Floats all = load(sums + j) + load(added + j);
      store(sums + j, all);
      if constexpr (O::kPlanes > 1) zero += all * 0.0f;
    }
    return O::kPlanes > 1 &&
           _mm512_cmp_ps_mask(reinterpret_cast<__m512>(zero), reinterpret_cast<__m512>(zero), _CMP_UNORD_Q);
  }

  // sums [width] = left @ right + added by fp32 products of the values that the planes stand for; the left
  // operand's words are left_stride apart, the right one is panels of `words` words.
  static void make_again(const StackShape& shape, const float* left, int64_t left_stride, const float* right,
                         int64_t words, const float* added, float* sums) {
    for (int64_t column = 0; column < shape.width; column += kLanes) {
      const float* panel = right + column * words;
      Floats all{};
      for (int64_t word = 0; word < words;
           word = word % kStep + 1 == kTile ? word + kStep - kTile + 1 : word + 1) {
        Floats a[2][O::kPlanes], b[2][O::kPlanes];
        for (int64_t p = 0; p < O::kPlanes; ++p) {
          const Ints x = as_ints(splat(left[(word + p * kTile) * left_stride])),
                     y = as_ints(load(panel + (word + p * kTile) * kPanel));
          a[0][p] = as_floats(x << 16), a[1][p] = as_floats(x & ~0xffff);
          b[0][p] = as_floats(y << 16), b[1][p] = as_floats(y & ~0xffff);
        }
        for (int64_t half = 0; half < 2; ++half) all += O::joined(a[half]) * O::joined(b[half]);
      }
      store(sums + column, all + load(added + column));
    }
  }

  static void product(const StackShape& shape, int64_t rows, const float* a, int64_t a_stride,
                      const float* packed, int64_t k, const float* added, int64_t added_stride, float* c) {
    Block block;
    for (int64_t column = 0; column < shape.width; column += 2 * kTile) {
      block.clear();
      for (int64_t word = 0; word < k; word += kStep) {
        add(block, {a + word, a_stride, kTile}, {packed + column * k + word * kTile, k * kTile});
      }
      block.put(c + column, shape.padded);
    }
    if (O::kPlanes == 1 && added_stride == 0 && all_zero(shape, added)) return;
    for (int64_t i = 0; i < rows; ++i) {
      const float* plus = added + i * added_stride;
      float* sums = c + i * shape.padded;
      if (!finish_row(shape, plus, sums)) continue;
      if constexpr (O::kPlanes > 1) make_again(shape, a + i * a_stride, 1, packed, k, plus, sums);
    }
  }

  static constexpr int64_t kBatchWords = O::kPlanes == 1 ? 256 : 192;  // whole steps

  static void outer(const StackShape& shape, const float* a, const float* du, int64_t words, int64_t rows,
                    float* c, float* out) {
    alignas(64) float left[kPad * kBatchWords];  // tiles of a's words with the batch along the row, two of
                                                 // them side by side
    Block block;
    if (!words) std::fill_n(c, kPad * shape.padded, 0.0f);
    for (int64_t first = 0; first < words; first += kBatchWords) {
      const int64_t count = std::min(kBatchWords, words - first);
      for (int64_t word = 0; word < count; word += kTile) {
        for (int64_t row = 0; row < kPad; row += kTile) {
          Floats square[kTile];
          for (int64_t i = 0; i < kTile; ++i) square[i] = load(a + row * words + (first + word + i) * kTile);
          transpose(square);
          for (int64_t i = 0; i < kTile; ++i) store(left + word * kPad + (row + i) * kTile, square[i]);
        }
      }
      for (int64_t column = 0; column < shape.width; column += 2 * kTile) {
        if (first) {
          block.load(c + column, shape.padded);
        } else {
          block.clear();
        }
        for (int64_t word = 0; word < count; word += kStep) {
          add(block, {left + word * kPad, kTile, kPad * kTile},
              {du + column * words + (first + word) * kTile, words * kTile});
        }
        block.put(c + column, shape.padded);
      }
    }
    if constexpr (O::kPlanes > 1) {
      const float* zeros = c + work_size(shape) - shape.padded;
      for (int64_t i = 0; i < rows; ++i) {
        float* sums = c + i * shape.padded;
        if (finish_row(shape, zeros, sums))
          make_again(shape, a + i / kTile * kTile * words + i % kTile, kTile, du, words, zeros, sums);
      }
    }
    stream_rows(shape, c, rows, out);
    finish_streams();
  }
};

}  // namespace

extern const StackKernels kStackAmx[2] = {Stack<SplitFp32, TileProducts<SplitFp32, AmxBlock>>::table(),
                                          Stack<PairedBf16, TileProducts<PairedBf16, AmxBlock>>::table()};
extern const StackKernels kStackAmxPlain[2] = {
    Stack<SplitFp32, TileProducts<SplitFp32, PlainBlock>>::table(),
    Stack<PairedBf16, TileProducts<PairedBf16, PlainBlock>>::table()};

}  // namespace deepres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
