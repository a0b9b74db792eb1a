// What the operands of a product are kept as. A product runs over 32-bit words along k: a float, or a pair of
// bf16 values of neighbouring k that one instruction multiplies and adds. Everything but `dot` is layout:
//
//   a row as left operand    words along the row             put_row, row_words
//   a right operand          panels of words [k words, n]    put_words
//
// SplitFp32 makes fp32 products of bf16 ones: a value is the sum of kPlanes bf16 values. Every kGroupWords
// words along k are there once for each plane, one plane after the other.

#pragma once

#include "cpu/vec.h"

namespace deepres {
namespace {

constexpr int64_t kGroupWords = 16;  // words along k of an AMX tile

struct Fp32 {
  static constexpr int64_t kPack = 1;  // values to a word
  static constexpr int64_t kPlanes = 1;
  static constexpr bool kRough = false;  // whether a sigmoid to 7e-5 is good enough
  using Saved = float;

  DEEPRES_INLINE static Floats dot(Floats sum, Floats a, Floats b) { return sum + a * b; }
  DEEPRES_INLINE static int64_t place(int64_t word) { return word; }
  DEEPRES_INLINE static int64_t value_of(int64_t word, int64_t) { return word; }
  DEEPRES_INLINE static void put_words(float* panel, int64_t, Floats first, Floats) { store(panel, first); }
  DEEPRES_INLINE static void put_row(float* row, int64_t c, Floats v) { store(row + c, v); }
  DEEPRES_INLINE static Floats load_saved(const float* p, bool) { return load(p); }
  DEEPRES_INLINE static void store_saved(float* p, Floats v, bool) { store(p, v); }
};

// n is saved in 16 bits: fp16, as |n| < sqrt(width), or bf16 where nothing bounds it (norm off).
struct Saved16 {
  static constexpr bool kRough = true;  // operands are rounded to 2e-3
  using Saved = uint16_t;

  DEEPRES_INLINE static Floats load_saved(const uint16_t* p, bool bounded) {
    return bounded ? load_fp16(p) : load_bf16(p);
  }
  DEEPRES_INLINE static void store_saved(uint16_t* p, Floats v, bool bounded) {
    bounded ? store_fp16(p, v) : store_bf16(p, v);
  }
};

// bf16 operands where no instruction multiplies them: floats that hold bf16 values, whose products are exact.
struct RoundedBf16 : Saved16 {
  static constexpr int64_t kPack = 1;
  static constexpr int64_t kPlanes = 1;

  DEEPRES_INLINE static Floats dot(Floats sum, Floats a, Floats b) { return sum + a * b; }
  DEEPRES_INLINE static int64_t place(int64_t word) { return word; }
  DEEPRES_INLINE static int64_t value_of(int64_t word, int64_t) { return word; }
  DEEPRES_INLINE static void put_words(float* panel, int64_t, Floats first, Floats) {
    store(panel, rounded_to_bf16(first));
  }
  DEEPRES_INLINE static void put_row(float* row, int64_t c, Floats v) { store(row + c, rounded_to_bf16(v)); }
};

#if defined(DEEPRES_BF16_PAIRS)
// Pairs of bf16 values, for AVX512-BF16 and AMX.
struct PairedBf16 : Saved16 {
  static constexpr int64_t kPack = 2;
  static constexpr int64_t kPlanes = 1;

  DEEPRES_INLINE static int64_t place(int64_t word) { return word; }
  DEEPRES_INLINE static int64_t value_of(int64_t word, int64_t half) { return 2 * word + half; }
  DEEPRES_INLINE static void put_words(float* panel, int64_t, Floats first, Floats second) {
    const __m512i halves = reinterpret_cast<__m512i>(
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
    const Ints interleaved = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                              0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
    store(panel, reinterpret_cast<Floats>(
                     _mm512_maskz_permutexvar_epi16(~0u, reinterpret_cast<__m512i>(interleaved), halves)));
  }
  DEEPRES_INLINE static void put_row(float* row, int64_t c, Floats v) {
    const __m256bh halves = _mm512_cvtneps_pbh(reinterpret_cast<__m512>(v));
    std::memcpy(reinterpret_cast<uint16_t*>(row) + c, &halves, sizeof halves);
  }
  DEEPRES_INLINE static Floats dot(Floats sum, Floats a, Floats b) {
    return reinterpret_cast<Floats>(_mm512_dpbf16_ps(
        reinterpret_cast<__m512>(sum), reinterpret_cast<__m512bh>(a), reinterpret_cast<__m512bh>(b)));
  }
};

// fp32 values as three bf16 planes. Two roundings to 8 bits leave 8 of a float's 24, so that nothing is lost
// unless a plane falls below 2^-126, where AMX takes it for 0. Word j of a group holds values j and j + 16 of
// its 32: the upper half of a float is then where the word wants the second.
struct SplitFp32 : Fp32 {
  static constexpr int64_t kPack = 2;
  static constexpr int64_t kPlanes = 3;

  DEEPRES_INLINE static int64_t place(int64_t word) {
    return word / kGroupWords * kGroupWords * kPlanes + word % kGroupWords;
  }
  DEEPRES_INLINE static int64_t value_of(int64_t word, int64_t half) {
    return word / kGroupWords * kGroupWords * kPack + word % kGroupWords + half * kGroupWords;
  }
  // Planes in the upper halves of the lanes. The lower ones are 0 in the first two, and in the last but for
  // NaN. A NaN is in the last whatever its bits, and so is one for an infinity, whose first plane is
  // infinite.
  DEEPRES_INLINE static void split(Floats v, Ints planes[kPlanes]) {
    planes[0] = (as_ints(v) + 0x8000) & ~0xffff;
    const Floats rest = v - as_floats(planes[0]);
    planes[1] = (as_ints(rest) + 0x8000) & ~0xffff;
    planes[2] = as_ints(rest - as_floats(planes[1]));
  }
  // The value of planes [3], an infinity included.
  DEEPRES_INLINE static Floats joined(const Floats planes[kPlanes]) {
    const Floats all = planes[0] + (planes[1] + planes[2]), size = as_floats(as_ints(planes[0]) & 0x7fffffff);
    return size == as_floats(Ints{} + 0x7f800000) ? planes[0] : all;
  }
  DEEPRES_INLINE static void put_row(float* row, int64_t c, Floats v) {
    Ints planes[kPlanes];
    split(v, planes);
    float* to = row + place(c / kPack);
    DEEPRES_UNROLL
    for (int64_t p = 0; p < kPlanes; ++p, to += kGroupWords) {
      const __m512i upper = reinterpret_cast<__m512i>(planes[p]);
      if (c / kLanes % kPack) {
        _mm512_mask_storeu_epi16(to - kLanes / kPack, 0xaaaaaaaa, upper);
      } else {
        _mm512_storeu_si512(to, _mm512_maskz_srli_epi32(0xffff, upper, 16));
      }
    }
  }
  // `plane` is the distance between planes in the panel.
  DEEPRES_INLINE static void put_words(float* panel, int64_t plane, Floats first, Floats second) {
    Ints low[kPlanes], high[kPlanes];
    split(first, low);
    split(second, high);
    DEEPRES_UNROLL
    for (int64_t p = 0; p < kPlanes; ++p) {
      store(panel + p * plane, as_floats(((low[p] >> 16) & 0xffff) | (high[p] & ~0xffff)));
    }
  }
};
#endif

}  // namespace
}  // namespace deepres
