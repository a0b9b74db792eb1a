// Hazards on the CPU: what the driver (hazard.cpp) asks of the vector code (hazard_kernels.h).
//
// A block is kRows rows of the batch, side by side: lane r of every vector is row r, so that the scans over
// the bins go from vector to vector and no lane meets another. A tile [bins, kRows] of a block holds its
// logits, and then, in their place, their gradients. Every function is compiled once per instruction set.
#pragma once

#include <cstdint>

namespace deepres::hazard {

constexpr int64_t kRows = 64;  // of a block: a tile of 1000 bins takes 256 KB, which stays in L2
constexpr int64_t kTerms =
    64;  // of a product are summed in a row; longer sums are sums of such, which round less
constexpr int64_t kLane = 16;  // the widest vector; d comes padded to a multiple of it

// Running sums of a block, [kRows] each: the sum is `high` - `excess` (Kahan's summation).
struct Sums {
  float *high, *excess;
};

// What is known of a block's rows, [kRows] each.
struct Labels {
  const int32_t* survived;  // bins below it were survived
  const int32_t* hit;       // the bin of the event; -1 where there is none
  const float* scale;       // what multiplies the row's gradients
};

struct Kernels {
  // out [count, cols] += a [count, terms] @ b [terms, cols]; a's element (i, t) is a[i * a_row + t * a_term],
  // rows of b and out are b_row and out_row apart, cols is a multiple of kLane. terms is at most kTerms.
  void (*product)(int64_t count, int64_t cols, int64_t terms, const float* a, int64_t a_row, int64_t a_term,
                  const float* b, int64_t b_row, float* out, int64_t out_row);

  // nll += -log of what each row's bins first..last-1 say of it; their logits in the tile become gradients.
  void (*nll)(int64_t first, int64_t last, const Labels& labels, float* tile, Sums nll);

  // For bins first..last-1: discounted [bins, kRows] = discount[k] S_k, total += those, log_survival += log(1
  // - hazard_k); the logits in the tile become hazards. Returns whether any row's S_last is larger than
  // 1e-38.
  bool (*survive)(int64_t first, int64_t last, const float* discount, float* tile, float* discounted,
                  Sums log_survival, Sums total);

  // The hazards of bins 0..last-1 in the tile become scale * hazard_k * sum_{j > k} discounted_j.
  void (*value_gradients)(int64_t last, const float* scale, const float* discounted, float* tile);

  // out [count] += sum over the rows of tile [count, kRows].
  void (*row_sums)(int64_t count, const float* tile, float* out);
};

extern const Kernels kGeneric;
#if defined(__x86_64__)
extern const Kernels kAvx2, kAvx512;
#endif

}  // namespace deepres::hazard
