// The residual stack for AMX: bf16 products on tiles of 16 x 16 sums, the rest by AVX-512. The same products
// over plain arrays in place of tiles (kStackAmxPlain) let the tests check the layouts on processors without
// AMX.

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

constexpr int64_t kTile = 16;  // rows, and words along k, of a tile

// 32 rows of 16 words, `stride` words apart.
struct Left {
  const float* first;
  int64_t stride;
};

// 16 words along k of 32 columns: two tiles, `next` words apart.
struct Right {
  const float* first;
  int64_t next;
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
    _tile_loadd(4, a.first, a.stride * 4);
    _tile_loadd(5, a.first + kTile * a.stride, a.stride * 4);
    _tile_loadd(6, b.first, kTile * 4);
    _tile_loadd(7, b.first + b.next, kTile * 4);
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  void put(float* c, int64_t stride) const {
    _tile_stored(0, c, stride * 4);
    _tile_stored(1, c + kTile, stride * 4);
    _tile_stored(2, c + kTile * stride, stride * 4);
    _tile_stored(3, c + kTile * stride + kTile, stride * 4);
  }
};

struct PlainBlock {
  float sums[2 * kTile][2 * kTile];

  void load(const float* c, int64_t stride) {
    for (int64_t i = 0; i < 2 * kTile; ++i) std::memcpy(sums[i], c + i * stride, sizeof sums[i]);
  }
  void clear() { std::memset(sums, 0, sizeof sums); }
  void add(const Left& a, const Right& b) {
    for (int64_t i = 0; i < 2 * kTile; ++i) {
      for (int64_t half = 0; half < 2; ++half) {
        Floats tile{};  // as AMX does it: the terms of a tile come together first
        for (int64_t k = 0; k < kTile; ++k) {
          tile = PairedBf16::dot(tile, splat(a.first[i * a.stride + k]),
                                 deepres::load(b.first + half * b.next + k * kTile));
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
template <class Block>
struct TileProducts {
  // About what stays in L2: these products are faster than the memory beyond.
  static constexpr int64_t kLeftBytes = 1 << 20;
  static constexpr int64_t kPanel = kTile, kSide = kTile;  // columns of a panel

  static bool all_zero(const StackShape& shape, const float* row) {
    Ints any{};
    for (int64_t j = 0; j < shape.width; j += kLanes) any |= as_ints(load(row + j));
    return _mm512_test_epi32_mask(reinterpret_cast<__m512i>(any), reinterpret_cast<__m512i>(any)) == 0;
  }

  static void product(const StackShape& shape, int64_t rows, const float* a, int64_t a_stride,
                      const float* packed, int64_t k, const float* added, int64_t added_stride, float* c) {
    Block block;
    for (int64_t column = 0; column < shape.width; column += 2 * kTile) {
      block.clear();
      for (int64_t word = 0; word < k; word += kTile) {
        block.add({a + word, a_stride}, {packed + column * k + word * kTile, k * kTile});
      }
      block.put(c + column, shape.padded);
    }
    if (added_stride == 0 && all_zero(shape, added)) return;
    for (int64_t i = 0; i < rows; ++i) {
      const float* plus = added + i * added_stride;
      float* sums = c + i * shape.padded;
      for (int64_t j = 0; j < shape.width; j += kLanes) store(sums + j, load(sums + j) + load(plus + j));
    }
  }

  static constexpr int64_t kBatchWords = 256;

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
        for (int64_t word = 0; word < count; word += kTile) {
          block.add({left + word * kPad, kTile},
                    {du + column * words + (first + word) * kTile, words * kTile});
        }
        block.put(c + column, shape.padded);
      }
    }
    stream_rows(shape, c, rows, out);
    finish_streams();
  }
};

}  // namespace

extern const StackKernels kStackAmx = Stack<PairedBf16, TileProducts<AmxBlock>>::table();
extern const StackKernels kStackAmxPlain = Stack<PairedBf16, TileProducts<PlainBlock>>::table();

}  // namespace deepres

#if defined(__clang__)
#pragma clang attribute pop
#endif
#endif
