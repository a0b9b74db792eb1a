// InfoNCE on the CPU: what the driver (info_nce.cpp) asks of the vector code (info_nce_kernels.h).
//
// Logits exist one tile at a time; a strip of tiles (a few rows of phi against all of psi) is what the
// gradients are made from. Every function works on one tile and is compiled once per instruction set.
#pragma once

#include <cstdint>

namespace deepres::nce {

enum class Energy : int { kNorm, kL2, kDot, kMrn };
enum class Form : int { kForward, kBackward, kSymmetric, kBinary };

constexpr int64_t kTileRows = 96, kTileCols = 128;  // 48 KB of logits: a tile stays in L2 between its steps
constexpr int64_t kTile = kTileRows * kTileCols;
// Blocks of a tile that are told near or far on their own, and are a share of the gradients' work.
constexpr int64_t kBlockRows = 24, kBlockCols = 64;
constexpr int64_t kTileBlocks = (kTileRows / kBlockRows) * (kTileCols / kBlockCols);
constexpr int64_t kLane = 16;  // the widest vector; d comes padded to a multiple of it

// What a row of one tile adds to the row's statistics: the largest logit, sum_j exp(logit - largest),
// sum_j logit, and sum_j softplus(logit) for the binary form; with targets sum_j target logit and
// sum_j target, null without. One entry per column tile in each array.
struct Partials {
  float *largest, *sum;
  double *total, *softplus, *target_logit, *mass;

  Partials operator+(int64_t n) const {
    return {largest + n,
            sum + n,
            total + n,
            softplus + n,
            target_logit ? target_logit + n : nullptr,
            mass ? mass + n : nullptr};
  }
};

// The same, reduced over the column tiles of a row.
struct RowSums {
  float largest;
  double sum, total, softplus, target_logit, mass;
};

// What a tile asks for beyond logits that are energies, one positive to a row and rows of one weight.
struct General {
  float scale, bias;     // logit = scale energy + bias; a pair left out keeps its energy, -inf
  int64_t cols;          // of the tile
  const float* targets;  // [rows, cols], `target_stride` floats from row to row; or null
  int64_t target_stride;
  // For `weights`:
  const float* target_share;   // [rows]: dL/dlogit is less by target_share[i] targets[i, j]
  const float* binary_weight;  // [rows]: what binary_scale is multiplied by
  const int32_t* own;          // [rows]: the column of the positive, which the sums leave out, if it is here
  double *energy_sum, *sum;    // entry i * sum_stride: sum_j dL/dlogit energy and sum_j dL/dlogit; or null
  int64_t sum_stride;
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
  // kMrn: also the distance of the second half of the features and where the largest difference of the first
  // is, -1 if none is above 0; both as large as the tile, or null.
  void (*logits)(Energy energy, const float* phi, int64_t rows, const float* panels, int64_t cols, int64_t d,
                 float* tile, float* roots, int32_t* places);

  // logit = scale energy + bias, to the bit what the tiles' functions make of it.
  float (*logit)(float energy, float scale, float bias);

  // Entry r * stride of each array of `out`, for the rows of one tile. `general` here and below: or null.
  void (*row_partials)(const float* tile, int64_t rows, int64_t cols, bool binary, const General* general,
                       Partials out, int64_t stride);
  RowSums (*row_sums)(Partials partials, int64_t tiles);

  // largest [kTileCols] and sum [kTileCols] brought up to date with `rows` more rows.
  void (*col_sums)(const float* tile, int64_t rows, const General* general, float* largest, float* sum);

  // squares[i] = |x_i|^2
  void (*square)(const float* x, int64_t rows, int64_t d, float* squares);

  // tile = dL/dlogit * slope, in place, where dlogit/dphi = slope (phi - psi), or slope psi for kDot; for
  // kMrn dL/denergy, which split() takes on. near [kTileBlocks]: whether a block, [row / kBlockRows][column /
  // kBlockCols], holds a pair with |x - y|^2 < (|x|^2 + |y|^2) / 4.
  void (*weights)(Energy energy, const Softmaxes& softmaxes, const Squares& squares, int64_t rows,
                  const General* general, float* tile, bool* near);

  // kMrn: tile = -tile / roots, the slope of the second half; roots = tile, that of the first.
  void (*split)(int64_t rows, float* tile, float* roots);

  // dx[i] += sum_j w[i wx + j wy] (x[i] - y[j]), or sum_j w y[j] for kDot; x, y, dx have rows of d floats;
  // nx is at most a block's rows or columns; one of wx and wy is 1. kMrn: the second half of the features.
  void (*accumulate)(Energy energy, bool near, const float* x, int64_t nx, const float* y, int64_t ny,
                     int64_t d, const float* w, int64_t wx, int64_t wy, float* dx);
};

extern const Kernels kGeneric, kAvx2, kAvx512;

// One call. Pointers that say "or null" are of options not asked for; see kernels/info_nce/op.py.
struct Problem {
  const float *phi, *psi;  // [b, d], [m, d]
  const int64_t* labels;   // [b], where row i's positive is; or null: at offset + i
  const float* targets;    // [b, m] in place of positives, labels then tell the likeliest; or null
  const float *row_weight, *penalty_weight;  // [b] or null
  int64_t b, m, d, offset;
  int64_t self;  // row i is goal self + i: the pair is left out; -1: no such pair
  Energy energy;
  Form form;
  double penalty;
  float scale, bias;  // logit = scale energy + bias

  double count() const { return static_cast<double>(b); }
  double weight(int64_t i) const { return row_weight ? row_weight[i] : 1; }
  double weight_of_penalty(int64_t i) const { return penalty_weight ? penalty_weight[i] : 1; }
  // The column of row i's own goal; with targets, of its likeliest.
  int64_t own(int64_t i) const { return labels ? labels[i] : offset + i; }
};

// loss [1]; lse [b]; metrics [3]: accuracy, mean positive and mean negative logit; rows [b], the loss of
// each; dphi [b, d] and dpsi [m, d], which are added to; dscale [1], dbias [1]. All but the first three: or
// null.
struct Results {
  float *loss, *lse, *metrics, *rows, *dphi, *dpsi, *dscale, *dbias;
};

void run(const Problem& problem, const Kernels& kernels, int threads, const Results& results);

}  // namespace deepres::nce
