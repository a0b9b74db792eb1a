// Vectors of DEEPRES_LANES floats, as the compiler's vector types: one source for AVX-512, AVX2, NEON and
// SSE.
//
// A file that includes this sets DEEPRES_LANES and the instruction set (`#pragma GCC target`) first.
// Everything sits in an unnamed namespace, so that versions for several instruction sets never merge at link
// time.

#pragma once

#include <cstdint>
#include <cstring>

#define DEEPRES_INLINE inline __attribute__((always_inline))
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

DEEPRES_INLINE Floats load(const float* p) {
  Floats v;
  std::memcpy(&v, p, sizeof v);
  return v;
}

DEEPRES_INLINE void store(float* p, Floats v) { std::memcpy(p, &v, sizeof v); }

DEEPRES_INLINE Floats splat(float s) { return Floats{} + s; }

DEEPRES_INLINE Floats as_floats(Ints v) { return reinterpret_cast<Floats>(v); }
DEEPRES_INLINE Ints as_ints(Floats v) { return reinterpret_cast<Ints>(v); }

// A fixed order of additions: halves onto halves.
DEEPRES_INLINE float sum(Floats v) {
  float t[kLanes];
  store(t, v);
  DEEPRES_UNROLL
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    DEEPRES_UNROLL
    for (int64_t i = 0; i < half; ++i) t[i] += t[i + half];
  }
  return t[0];
}

// All bits set in the first `count` lanes, none in the others.
DEEPRES_INLINE Ints first_lanes(int64_t count) {
  Ints mask;
  for (int64_t i = 0; i < kLanes; ++i) mask[i] = i < count ? -1 : 0;
  return mask;
}

DEEPRES_INLINE Floats keep(Floats v, Ints mask) { return as_floats(as_ints(v) & mask); }

// exp(x) to about 1 ulp for x in [-87.3, 88], clamped outside; NaN stays NaN.
DEEPRES_INLINE Floats exp(Floats x) {
  x = x < -87.3f ? splat(-87.3f) : x;
  x = x > 88.0f ? splat(88.0f) : x;
  const Floats magic = splat(12582912.0f);  // 1.5 * 2^23: adding it rounds to an integer in the low bits
  const Floats shifted = x * 1.44269504088896341f + magic;
  const Floats n = shifted - magic;
  Floats r = x - n * 0.693359375f;
  r = r - n * -2.12194440e-4f;
  Floats p = splat(1.9875691500e-4f);
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  return p * as_floats((as_ints(shifted) - as_ints(magic) + 127) << 23);
}

DEEPRES_INLINE Floats sigmoid(Floats z) { return 1.0f / (1.0f + exp(-z)); }

}  // namespace
}  // namespace deepres
