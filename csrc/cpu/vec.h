// Vectors of DEEPRES_LANES floats, as the compiler's vector types: one source for AVX-512, AVX2, NEON and
// SSE.
//
// A file that includes this sets DEEPRES_LANES and the instruction set (`#pragma GCC target`) first.
// Everything sits in an unnamed namespace, so that versions for several instruction sets never merge at link
// time.

#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if DEEPRES_LANES >= 8
#include <immintrin.h>
#endif

#define DEEPRES_INLINE inline __attribute__((always_inline))
#define DEEPRES_LAMBDA __attribute__((always_inline))
#if defined(__clang__)
#define DEEPRES_UNROLL _Pragma("unroll")
#else
#define DEEPRES_UNROLL _Pragma("GCC unroll 32")
#endif

namespace deepres {
namespace {

constexpr int64_t kLanes = DEEPRES_LANES;

typedef float Floats __attribute__((vector_size(4 * DEEPRES_LANES)));
typedef int32_t Ints __attribute__((vector_size(4 * DEEPRES_LANES)));
typedef uint16_t Halves __attribute__((vector_size(2 * DEEPRES_LANES)));

DEEPRES_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

DEEPRES_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

// For what this core will not read soon: past the caches where p is aligned. finish_streams() before others
// read it.
DEEPRES_INLINE void stream(float* p, Floats v) {
#if DEEPRES_LANES == 16
  if (reinterpret_cast<uintptr_t>(p) % sizeof v == 0) {
    _mm512_stream_ps(p, reinterpret_cast<__m512>(v));
    return;
  }
#endif
  store(p, v);
}

DEEPRES_INLINE void finish_streams() {
#if DEEPRES_LANES == 16
  _mm_sfence();
#endif
}

DEEPRES_INLINE Halves load_halves(const uint16_t* p) {
  Halves v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

// The low 16 bits of each lane.
DEEPRES_INLINE void store_halves(uint16_t* p, Ints v) {
  const Halves h = __builtin_convertvector(v, Halves);
  std::memcpy(p, &h, sizeof h);
}

// s - 0 is s whatever s is, so this is a plain broadcast; 0 + s would turn -0 into 0 and cost an addition.
DEEPRES_INLINE Floats splat(float s) { return s - Floats{}; }

DEEPRES_INLINE Floats as_floats(Ints v) { return reinterpret_cast<Floats>(v); }
DEEPRES_INLINE Ints as_ints(Floats v) { return reinterpret_cast<Ints>(v); }

using Lanes = std::make_integer_sequence<int, DEEPRES_LANES>;

template <int kDistance, int... kLane>
DEEPRES_INLINE Floats swapped(Floats v, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(v, v, (kLane ^ kDistance)...);
}

// The sum of the lanes, halves onto halves: the order of additions is fixed.
DEEPRES_INLINE float sum(Floats v) {
  if constexpr (kLanes == 16) v += swapped<8>(v, Lanes{});
  if constexpr (kLanes >= 8) v += swapped<4>(v, Lanes{});
  v += swapped<2>(v, Lanes{});
  v += swapped<1>(v, Lanes{});
  return v[0];
}

// All bits set in the first `count` lanes, none in the others.
DEEPRES_INLINE Ints first_lanes(int64_t count) {
  Ints mask;
  for (int64_t i = 0; i < kLanes; ++i) mask[i] = i < count ? -1 : 0;
  return mask;
}

DEEPRES_INLINE Floats keep(Floats v, Ints mask) { return as_floats(as_ints(v) & mask); }

// Both bounds let NaN through.
DEEPRES_INLINE Floats clamp(Floats v, float least, float most) {
#if DEEPRES_LANES == 16
  const __m512 low = _mm512_max_ps(_mm512_set1_ps(least), reinterpret_cast<__m512>(v));
  return reinterpret_cast<Floats>(_mm512_min_ps(_mm512_set1_ps(most), low));
#else
  v = v < least ? splat(least) : v;
  return v > most ? splat(most) : v;
#endif
}

// 2^t for t in [-126, 126], to 1e-7 of its value, or to 3e-6 if `kRough`; NaN stays NaN. With 16 lanes a
// larger t gives what it should, up to infinity.
template <bool kRough = false>
DEEPRES_INLINE Floats exp2(Floats t) {
#if DEEPRES_LANES == 16
  const Floats n =
      reinterpret_cast<Floats>(_mm512_maskz_roundscale_ps(0xffff, reinterpret_cast<__m512>(t), 0));
#else
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Floats shifted = t + magic, n = shifted - magic;
#endif
  const Floats f = t - n;  // in [-1/2, 1/2]: the polynomial is the best one of its degree there, exact at 0
  Floats p;
  if constexpr (kRough) {
    const Floats square = f * f;  // pairs of terms at a time: fewer of them wait for each other
    p = (9.5853824e-3f * f + 5.5906628e-2f) * square + (2.4024038e-1f * f + 6.9312418e-1f);
    p = p * f + 1.0f;
  } else {
    p = splat(1.3264726838e-3f);
    p = p * f + 9.6715126653e-3f;
    p = p * f + 5.5507337444e-2f;
    p = p * f + 2.4022242085e-1f;
    p = p * f + 6.9314697760e-1f;
    p = p * f + 1.0f;
  }
#if DEEPRES_LANES == 16
  return reinterpret_cast<Floats>(
      _mm512_maskz_scalef_ps(0xffff, reinterpret_cast<__m512>(p), reinterpret_cast<__m512>(n)));
#else
  return p * as_floats((as_ints(shifted) - as_ints(magic) + 127) << 23);
#endif
}

// 1 / d for d >= 1, to about 1 ulp.
DEEPRES_INLINE Floats reciprocal(Floats d) {
#if DEEPRES_LANES == 16
  const Floats r = reinterpret_cast<Floats>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(d)));
  return r + r * (1.0f - d * r);
#else
  return 1.0f / d;
#endif
}

// exp(x) for x <= 0 to about one unit in the last place; 0 below -87, NaN for NaN.
DEEPRES_INLINE Floats exponential(Floats x) {
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it leaves round(x / ln 2) in the low bits
  const Floats shifted = x * 1.44269504f + magic, n = shifted - magic;
  Floats r = x - n * 0.693359375f;  // ln 2 in two parts, the first short enough for an exact product
  r = r + n * 2.12194440e-4f;
  // (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, interpolated at Chebyshev points
  Floats q = splat(0.00139336509f);
  q = q * r + 0.00836317986f;
  q = q * r + 0.0416664667f;
  q = q * r + 0.166665763f;
  q = q * r + 0.5f;
  const Floats y = (q * r) * r + r + 1.0f;
  const Floats scaled = y * as_floats((as_ints(shifted) - as_ints(magic) + 127) << 23);
  return x < -87.0f ? Floats{} : scaled;
}

// log(1 + e) for 0 <= e <= 1, relative error about 1e-7 down to the smallest e: 2 atanh(e / (2 + e)).
DEEPRES_INLINE Floats log_one_plus(Floats e) {
  const Floats t = e * reciprocal(e + 2.0f), z = t * t;
  Floats q = splat(1.0f / 15);
  q = q * z + 1.0f / 13;
  q = q * z + 1.0f / 11;
  q = q * z + 1.0f / 9;
  q = q * z + 1.0f / 7;
  q = q * z + 1.0f / 5;
  q = q * z + 1.0f / 3;
  return (q * z) * (t + t) + (t + t);
}

// 1 / (1 + exp(-z)), to about 1e-7 of its value; to 7e-5 if `kRough`, for what is rounded to 16 bits.
template <bool kRough = false>
DEEPRES_INLINE Floats sigmoid(Floats z) {
#if DEEPRES_LANES == 16
  if constexpr (kRough) {
    const __m512 t = reinterpret_cast<__m512>(z * -1.44269504088896341f);
    const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-126.0f), t);  // NaN passes
    const Floats d = 1.0f + exp2<true>(reinterpret_cast<Floats>(bounded));
    return reinterpret_cast<Floats>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(d)));
  }
#endif
  return reciprocal(1.0f + exp2(clamp(z * -1.44269504088896341f, -126.0f, 126.0f)));
}

// a[0], b[0], a[1], b[1], ...: the first halves of both, and the second halves.
template <int... kLane>
DEEPRES_INLINE Floats interleaved_low(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (kLane / 2 + kLane % 2 * DEEPRES_LANES)...);
}
template <int... kLane>
DEEPRES_INLINE Floats interleaved_high(Floats a, Floats b, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(a, b, (DEEPRES_LANES / 2 + kLane / 2 + kLane % 2 * DEEPRES_LANES)...);
}

// Transposes kLanes vectors in place: log2(kLanes) rounds of interleaving the first half with the second.
DEEPRES_INLINE void transpose(Floats* rows) {
  DEEPRES_UNROLL
  for (int64_t round = 1; round < kLanes; round *= 2) {
    Floats next[kLanes];
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kLanes / 2; ++i) {
      next[2 * i] = interleaved_low(rows[i], rows[i + kLanes / 2], Lanes{});
      next[2 * i + 1] = interleaved_high(rows[i], rows[i + kLanes / 2], Lanes{});
    }
    DEEPRES_UNROLL
    for (int64_t i = 0; i < kLanes; ++i) rows[i] = next[i];
  }
}

// v rounded to nearest even in bf16, as 16 low bits of each lane; NaN stays NaN.
DEEPRES_INLINE Ints bf16_bits(Floats v) {
  const Ints bits = as_ints(v);
  const Ints rounded = bits + 0x7fff + ((bits >> 16) & 1);
  return ((v == v ? rounded : bits | 0x400000) >> 16) & 0xffff;
}

DEEPRES_INLINE Floats rounded_to_bf16(Floats v) { return as_floats(bf16_bits(v) << 16); }

DEEPRES_INLINE Floats load_bf16(const uint16_t* p) {
  return as_floats(__builtin_convertvector(load_halves(p), Ints) << 16);
}

DEEPRES_INLINE void store_bf16(uint16_t* p, Floats v) { store_halves(p, bf16_bits(v)); }

// fp16, by the processor's own conversion where there is one.
#if DEEPRES_LANES == 16
DEEPRES_INLINE Floats load_fp16(const uint16_t* p) {
  __m256i h;
  std::memcpy(&h, p, sizeof h);
  return reinterpret_cast<Floats>(_mm512_cvtph_ps(h));
}
DEEPRES_INLINE void store_fp16(uint16_t* p, Floats v) {
  const __m256i h = _mm512_cvtps_ph(reinterpret_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof h);
}
#elif DEEPRES_LANES == 8
DEEPRES_INLINE Floats load_fp16(const uint16_t* p) {
  __m128i h;
  std::memcpy(&h, p, sizeof h);
  return reinterpret_cast<Floats>(_mm256_cvtph_ps(h));
}
DEEPRES_INLINE void store_fp16(uint16_t* p, Floats v) {
  const __m128i h = _mm256_cvtps_ph(reinterpret_cast<__m256>(v), _MM_FROUND_TO_NEAREST_INT);
  std::memcpy(p, &h, sizeof h);
}
#else
DEEPRES_INLINE Floats load_fp16(const uint16_t* p) {
  const Ints h = __builtin_convertvector(load_halves(p), Ints);
  const Ints sign = (h & 0x8000) << 16, magnitude = (h & 0x7fff) << 13, bias = Ints{} + (112 << 23);
  const Floats subnormal = as_floats(magnitude + bias + (1 << 23)) - as_floats(bias + (1 << 23));
  Ints bits = magnitude + bias;
  bits = magnitude >= (0x7c00 << 13) ? bits + bias : bits;
  bits = magnitude < (0x0400 << 13) ? as_ints(subnormal) : bits;
  return as_floats(bits | sign);
}
DEEPRES_INLINE void store_fp16(uint16_t* p, Floats v) {
  const Ints bits = as_ints(v), magnitude = bits & 0x7fffffff, sign = (bits >> 16) & 0x8000;
  // Adding 0.5 leaves a subnormal's bits, rounded, at the bottom of the sum.
  const Ints subnormal = as_ints(as_floats(magnitude) + 0.5f) - as_ints(splat(0.5f));
  Ints h = (magnitude - (112 << 23) + 0xfff + ((magnitude >> 13) & 1)) >> 13;
  h = magnitude < 0x38800000 ? subnormal : h;
  h = magnitude >= 0x47800000 ? Ints{} + 0x7c00 : h;
  h = magnitude > 0x7f800000 ? Ints{} + 0x7e00 : h;
  store_halves(p, h | sign);
}
#endif

}  // namespace
}  // namespace deepres
