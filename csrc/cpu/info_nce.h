// InfoNCE on the CPU: what the driver (info_nce.cpp) asks of the vector code (info_nce_kernels.h).
//
// Logits exist one tile at a time; a strip of tiles (a few rows of phi against all of psi) is what the
// gradients are made from. Every function works on one tile and is compiled once per instruction set.
#pragma once

#include <cstdint>

namespace deepres::nce {

enum class Energy : int { kNorm, kL2, kDot };
enum class Form : int { kForward, kBackward, kSymmetric, kBinary };

constexpr int64_t kTileRows = 96, kTileCols = 128;  // 48 KB of logits: a tile stays in L2 between its steps
constexpr int64_t kTile = kTileRows * kTileCols;
// Blocks of a tile that are told near or far on their own, and are a share of the gradients' work.
constexpr int64_t kBlockRows = 24, kBlockCols = 64;
constexpr int64_t kTileBlocks = (kTileRows / kBlockRows) * (kTileCols / kBlockCols);
constexpr int64_t kLane = 16;  // the widest vector; d comes padded to a multiple of it

// What a row of one tile adds to the row's statistics: the largest logit, sum_j exp(logit - largest),
// sum_j logit, and sum_j softplus(logit) for the binary form. One entry per column tile in each array.
struct Partials {
  float *largest, *sum;
  double *total, *softplus;
};

// The same, reduced over the column tiles of a row.
struct RowSums {
  float largest;
  double sum, total, softplus;
};

// dL/dlogit of a tile [i, j], before the -1 of the positives:
//   row_scale[i] exp(logit - row_largest[i]) + col_scale[j] exp(logit - col_largest[j]) + binary_scale
//   sigmoid(logit)
// Null pointers and a zero leave a term out.
struct Softmaxes {
  const float *row_largest, *row_scale, *col_largest, *col_scale;
  float binary_scale;
};

// |phi_i|^2 and |psi_j|^2 of a tile's rows and columns.
struct Squares {
  const float *phi, *psi;
};

struct Kernels {
  // panels [kTileCols / width][d][width] = psi[rows 0..cols) transposed, 0 past them.
  void (*pack)(const float* psi, int64_t cols, int64_t d, float* panels);

  // tile [kTileRows, kTileCols] = energies between phi [rows, d] and a packed tile; -inf past `cols`.
  void (*logits)(Energy energy, const float* phi, int64_t rows, const float* panels, int64_t cols, int64_t d,
                 float* tile);

  // Entry r * stride of each array of `out`, for the rows of one tile.
  void (*row_partials)(const float* tile, int64_t rows, int64_t cols, bool binary, Partials out,
                       int64_t stride);
  RowSums (*row_sums)(Partials partials, int64_t tiles);

  // largest [kTileCols] and sum [kTileCols] brought up to date with `rows` more rows.
  void (*col_sums)(const float* tile, int64_t rows, float* largest, float* sum);

  // squares[i] = |x_i|^2
  void (*square)(const float* x, int64_t rows, int64_t d, float* squares);

  // tile = dL/dlogit * slope, in place, where dlogit/dphi = slope (phi - psi), or slope psi for kDot.
  // near [kTileBlocks]: whether a block, [row / kBlockRows][column / kBlockCols], holds a pair with
  // |x - y|^2 < (|x|^2 + |y|^2) / 4.
  void (*weights)(Energy energy, const Softmaxes& softmaxes, const Squares& squares, int64_t rows,
                  float* tile, bool* near);

  // dx[i] += sum_j w[i wx + j wy] (x[i] - y[j]), or sum_j w y[j] for kDot; x, y, dx have rows of d floats;
  // nx is at most a block's rows or columns; one of wx and wy is 1.
  void (*accumulate)(Energy energy, bool near, const float* x, int64_t nx, const float* y, int64_t ny,
                     int64_t d, const float* w, int64_t wx, int64_t wy, float* dx);
};

extern const Kernels kGeneric, kAvx2, kAvx512;

}  // namespace deepres::nce
