// Lengths of unions of intervals on the CPU: what the driver (unions.cpp) asks of the vector code
// (unions_kernels.h).
//
// A part is kPart intervals [x_i, max(x_i, y_i)], whose numbers lie side by side in x and in y. Lane p of
// every vector is part p, so that no lane meets another.
#pragma once

#include <cstdint>

namespace deepres::unions {

constexpr int64_t kPart = 8;

struct Kernels {
  // out [parts] = the length of the union of each part's intervals; x, y [parts, kPart]. NaN and inf - inf
  // give NaN.
  void (*lengths)(int64_t parts, const float* x, const float* y, float* out);

  // The gradients of sum(d * lengths): dx = -d where an interval begins the piece of the union that it lies
  // in, dy = d where it ends one, 0 elsewhere. Either may be null. Where the length is NaN they are.
  void (*gradients)(int64_t parts, const float* x, const float* y, const float* d, float* dx, float* dy);
};

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace deepres::unions
