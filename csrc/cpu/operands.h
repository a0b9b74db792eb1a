// What the operands of a product are kept as. A product runs over 32-bit words along k: a float, or a pair of
// bf16 values of neighbouring k that one instruction multiplies and adds. Everything but `dot` is layout:
//
//   a row as left operand    words along the row             put_row, row_words
//   a right operand          panels of words [k words, n]    word(value at k, value at k + 1)

#pragma once

#include "cpu/vec.h"

namespace deepres {
namespace {

struct Fp32 {
  static constexpr int64_t kPack = 1;    // values to a word
  static constexpr bool kRough = false;  // whether a sigmoid to 7e-5 is good enough
  using Saved = float;

  DEEPRES_INLINE static Floats dot(Floats sum, Floats a, Floats b) { return sum + a * b; }
  DEEPRES_INLINE static Floats word(Floats first, Floats) { return first; }
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

  DEEPRES_INLINE static Floats dot(Floats sum, Floats a, Floats b) { return sum + a * b; }
  DEEPRES_INLINE static Floats word(Floats first, Floats) { return rounded_to_bf16(first); }
  DEEPRES_INLINE static void put_row(float* row, int64_t c, Floats v) { store(row + c, rounded_to_bf16(v)); }
};

#if defined(DEEPRES_BF16_PAIRS)
// Pairs of bf16 values, for AVX512-BF16 and AMX.
struct PairedBf16 : Saved16 {
  static constexpr int64_t kPack = 2;

  DEEPRES_INLINE static Floats word(Floats first, Floats second) {
    const __m512i halves = reinterpret_cast<__m512i>(
        _mm512_cvtne2ps_pbh(reinterpret_cast<__m512>(second), reinterpret_cast<__m512>(first)));
    const Ints interleaved = {0x100000, 0x110001, 0x120002, 0x130003, 0x140004, 0x150005, 0x160006, 0x170007,
                              0x180008, 0x190009, 0x1a000a, 0x1b000b, 0x1c000c, 0x1d000d, 0x1e000e, 0x1f000f};
    return reinterpret_cast<Floats>(
        _mm512_maskz_permutexvar_epi16(~0u, reinterpret_cast<__m512i>(interleaved), halves));
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
#endif

}  // namespace
}  // namespace deepres
