// The tile functions of info_nce.h for one vector width.
//
// Included once by each info_nce_<instruction set>.cpp, inside that file's target pragma, after
// DEEPRES_LANES is set. Everything here is local to the
// including file, so that no function of one instruction set can stand in for another's.

#include "cpu/vec.h"

namespace deepres::nce {
namespace {

constexpr int kPanels = kLanes == 16 ? 4 : 2;    // vectors of columns to a register block
constexpr int kRows = 4;                         // rows to a register block of logits
constexpr int kNearRows = kLanes == 16 ? 6 : 3;  // and of gradients by differences, which hold x as well
constexpr int kFarRows = 6, kFarVecs = kLanes == 16 ? 4 : 2;  // and of gradients by products
constexpr int64_t kRun = 64;  // features summed in a row; longer sums are sums of runs, which round less

inline Floats larger(Floats a, Floats b) { return a > b ? a : b; }
inline Floats square_root(Floats v) {
  for (int l = 0; l < kLanes; ++l) v[l] = __builtin_sqrtf(v[l]);
  return v;
}
template <typename T>
inline T sum_of(Floats v) {
  T s = 0;
  for (int l = 0; l < kLanes; ++l) s += v[l];
  return s;
}
inline float largest_of(Floats v) {
  float m = v[0];
  for (int l = 1; l < kLanes; ++l) m = v[l] > m ? v[l] : m;
  return m;
}

void pack(const float* psi, int64_t cols, int64_t d, float* panels) {
  for (int64_t first = 0; first < kTileCols; first += kLanes, panels += d * kLanes)
    for (int64_t k = 0; k < d; ++k)
      for (int64_t l = 0; l < kLanes; ++l)
        panels[k * kLanes + l] = first + l < cols ? psi[(first + l) * d + k] : 0.f;
}

template <Energy energy>
void logits_of(const float* phi, int64_t rows, const float* panels, int64_t cols, int64_t d, float* tile) {
  constexpr int block = kPanels * kLanes;
  for (int64_t first = 0; first < cols; first += block, panels += d * block) {
    for (int64_t row = 0; row < rows; row += kRows) {
      const float* x[kRows];
      for (int r = 0; r < kRows; ++r) x[r] = phi + (row + r < rows ? row + r : rows - 1) * d;
      Floats total[kRows][kPanels] = {};
      for (int64_t start = 0; start < d; start += kRun) {
        const int64_t stop = start + kRun < d ? start + kRun : d;
        Floats sum[kRows][kPanels] = {};
        for (int64_t k = start; k < stop; ++k) {
          Floats y[kPanels];
          for (int p = 0; p < kPanels; ++p) y[p] = load(panels + (p * d + k) * kLanes);
          for (int r = 0; r < kRows; ++r) {
            const Floats xr = splat(x[r][k]);
            for (int p = 0; p < kPanels; ++p) {
              if constexpr (energy == Energy::kDot) {
                sum[r][p] += xr * y[p];
              } else {  // differences first, squares after: nearly equal pairs lose no digits
                const Floats t = xr - y[p];
                sum[r][p] += t * t;
              }
            }
          }
        }
        for (int r = 0; r < kRows; ++r)
          for (int p = 0; p < kPanels; ++p) total[r][p] += sum[r][p];
      }
      for (int r = 0; r < kRows; ++r)
        for (int p = 0; p < kPanels; ++p) {
          Floats s = total[r][p];
          if constexpr (energy == Energy::kNorm) s = -square_root(s);
          if constexpr (energy == Energy::kL2) s = -s;
          store(tile + (row + r) * kTileCols + first + p * kLanes, s);
        }
    }
  }
}

// -(max_k relu(x_k - y_k) over the first half + sqrt(sum_k (x_k - y_k)^2 + 1e-6) over the second).
void logits_mrn(const float* phi, int64_t rows, const float* panels, int64_t cols, int64_t d, float* tile,
                float* roots, int32_t* places) {
  constexpr int block = kPanels * kLanes;
  const int64_t half = d / 2;
  for (int64_t first = 0; first < cols; first += block, panels += d * block)
    for (int64_t row = 0; row < rows; ++row) {
      const float* x = phi + row * d;
      for (int p = 0; p < kPanels; ++p) {
        const float* y = panels + p * d * kLanes;
        Floats most{}, total{};
        Ints place = Ints{} - 1, unordered{};
        for (int64_t k = 0; k < half; ++k) {
          const Floats t = splat(x[k]) - load(y + k * kLanes);
          place = t > most ? Ints{} + (int32_t)k : place;
          most = larger(t, most);
          unordered |= t != t;
        }
        for (int64_t start = half; start < d; start += kRun) {
          const int64_t stop = start + kRun < d ? start + kRun : d;
          Floats sum{};
          for (int64_t k = start; k < stop; ++k) {
            const Floats t = splat(x[k]) - load(y + k * kLanes);
            sum += t * t;
          }
          total += sum;
        }
        const Floats root = square_root(total + 1e-6f);
        const int64_t at = row * kTileCols + first + p * kLanes;
        store(tile + at, unordered ? splat(__builtin_nanf("")) : -(most + root));
        if (!places) continue;
        store(roots + at, root);
        __builtin_memcpy(places + at, &place, sizeof place);
      }
    }
}

void logits(Energy energy, const float* phi, int64_t rows, const float* panels, int64_t cols, int64_t d,
            float* tile, float* roots, int32_t* places) {
  if (energy == Energy::kNorm) logits_of<Energy::kNorm>(phi, rows, panels, cols, d, tile);
  if (energy == Energy::kL2) logits_of<Energy::kL2>(phi, rows, panels, cols, d, tile);
  if (energy == Energy::kDot) logits_of<Energy::kDot>(phi, rows, panels, cols, d, tile);
  if (energy == Energy::kMrn) logits_mrn(phi, rows, panels, cols, d, tile, roots, places);
  if (cols < kTileCols)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = cols; j < kTileCols; ++j) tile[row * kTileCols + j] = -__builtin_inff();
}

// Fused wherever the processor fuses: a positive's logit, on its own, and its row's largest must agree to the
// bit.
inline Floats scaled(Floats energy, float scale, float bias) {
#if DEEPRES_LANES >= 8 || defined(__aarch64__)
  for (int l = 0; l < kLanes; ++l) energy[l] = __builtin_fmaf(energy[l], scale, bias);
  return energy;
#else
  return energy * scale + bias;
#endif
}

template <bool kGeneral>
inline Floats logit_of(Floats energy, const General* general) {
  if constexpr (kGeneral)
    return energy == -__builtin_inff() ? energy : scaled(energy, general->scale, general->bias);
  else
    return energy;
}

float logit(float energy, float scale, float bias) {
  General general{};
  general.scale = scale;
  general.bias = bias;
  return logit_of<true>(splat(energy), &general)[0];
}

// The targets of a tile's row, 0 past its columns: where they lie, or in `buffer`.
const float* targets_of(const General& general, int64_t row, float* buffer) {
  const float* targets = general.targets + row * general.target_stride;
  if (general.cols == kTileCols) return targets;
  __builtin_memcpy(buffer, targets, general.cols * sizeof *buffer);
  return buffer;
}

inline Ints lanes() {
  Ints lane;
  for (int l = 0; l < kLanes; ++l) lane[l] = l;
  return lane;
}

template <bool kGeneral>
void row_partials_of(const float* tile, int64_t rows, int64_t cols, bool binary, const General* general,
                     Partials out, int64_t stride) {
  const Ints lane = lanes();
  float buffer[kTileCols] = {};
  for (int64_t r = 0; r < rows; ++r, tile += kTileCols) {
    Floats most = logit_of<kGeneral>(load(tile), general);
    for (int64_t j = kLanes; j < kTileCols; j += kLanes)
      most = larger(logit_of<kGeneral>(load(tile + j), general), most);
    float largest = largest_of(most);
    largest = largest < -__FLT_MAX__ ? -__FLT_MAX__ : largest;  // all at -inf: a sum of 0, not NaN
    Floats sum{}, total{}, softplus{};
    for (int64_t j = 0; j < kTileCols; j += kLanes) {
      const Floats s = logit_of<kGeneral>(load(tile + j), general);
      sum += exponential(s - largest);
      if constexpr (kGeneral)
        total += s == -__builtin_inff() ? Floats{} : s;
      else
        total += lane + (int32_t)j < (int32_t)cols ? s : Floats{};
    }
    if (binary)
      for (int64_t j = 0; j < kTileCols; j += kLanes) {
        const Floats s = logit_of<kGeneral>(load(tile + j), general);
        softplus += larger(s, Floats{}) + log_one_plus(exponential(s > 0.f ? -s : s));
      }
    out.largest[r * stride] = largest;
    out.sum[r * stride] = sum_of<float>(sum);
    out.total[r * stride] = sum_of<double>(total);
    out.softplus[r * stride] = sum_of<double>(softplus);
    if constexpr (kGeneral) {
      if (!general->targets) continue;
      const float* targets = targets_of(*general, r, buffer);
      Floats dot{}, mass{};
      for (int64_t j = 0; j < kTileCols; j += kLanes) {
        const Floats s = logit_of<true>(load(tile + j), general), t = load(targets + j);
        const Ints out_of_sum = s == -__builtin_inff();
        dot += out_of_sum ? Floats{} : t * s;
        mass += out_of_sum ? Floats{} : t;
      }
      out.target_logit[r * stride] = sum_of<double>(dot);
      out.mass[r * stride] = sum_of<double>(mass);
    }
  }
}

void row_partials(const float* tile, int64_t rows, int64_t cols, bool binary, const General* general,
                  Partials out, int64_t stride) {
  const auto f = general ? row_partials_of<true> : row_partials_of<false>;
  f(tile, rows, cols, binary, general, out, stride);
}

RowSums row_sums(Partials partials, int64_t tiles) {
  RowSums out{partials.largest[0], 0, 0, 0, 0, 0};
  for (int64_t t = 1; t < tiles; ++t)
    out.largest = partials.largest[t] > out.largest ? partials.largest[t] : out.largest;
  for (int64_t t = 0; t < tiles; t += kLanes) {
    const int64_t n = tiles - t < kLanes ? tiles - t : kLanes;
    Floats largest = splat(-__builtin_inff());
    for (int64_t l = 0; l < n; ++l) largest[l] = partials.largest[t + l];
    const Floats factor = exponential(largest - out.largest);
    for (int64_t l = 0; l < n; ++l) {
      out.sum += (double)factor[l] * partials.sum[t + l];
      out.total += partials.total[t + l];
      out.softplus += partials.softplus[t + l];
    }
    for (int64_t l = 0; partials.mass && l < n; ++l) {
      out.target_logit += partials.target_logit[t + l];
      out.mass += partials.mass[t + l];
    }
  }
  return out;
}

template <bool kGeneral>
void col_sums_of(const float* tile, int64_t rows, const General* general, float* largest, float* sum) {
  for (int64_t j = 0; j < kTileCols; j += kLanes) {
    const Floats before = load(largest + j);
    Floats most = before;
    for (int64_t r = 0; r < rows; ++r)
      most = larger(logit_of<kGeneral>(load(tile + r * kTileCols + j), general), most);
    if constexpr (kGeneral) most = larger(most, splat(-__FLT_MAX__));
    Floats total = load(sum + j) * exponential(before - most), here{};
    for (int64_t r = 0; r < rows; ++r)
      here += exponential(logit_of<kGeneral>(load(tile + r * kTileCols + j), general) - most);
    store(largest + j, most);
    store(sum + j, total + here);
  }
}

void col_sums(const float* tile, int64_t rows, const General* general, float* largest, float* sum) {
  (general ? col_sums_of<true> : col_sums_of<false>)(tile, rows, general, largest, sum);
}

template <Energy energy, bool kGeneral>
void weights_of(const Softmaxes& softmaxes, const Squares& squares, int64_t rows, const General* general,
                float* tile, bool* near) {
  const Ints lane = lanes();
  float buffer[kTileCols] = {};
  for (int64_t r = 0; r < rows; ++r, tile += kTileCols) {
    const float* targets = nullptr;
    float binary_scale = softmaxes.binary_scale;
    Floats energy_sum{}, g_sum{};
    if constexpr (kGeneral) {
      if (general->targets) targets = targets_of(*general, r, buffer);
      if (general->binary_weight) binary_scale *= general->binary_weight[r];
    }
    for (int64_t block = 0; block < kTileCols / kBlockCols; ++block) {
      Ints close{};
      for (int64_t j = block * kBlockCols; j < (block + 1) * kBlockCols; j += kLanes) {
        const Floats e = load(tile + j), s = logit_of<kGeneral>(e, general);
        Floats g{};
        if (softmaxes.row_scale) g = exponential(s - softmaxes.row_largest[r]) * softmaxes.row_scale[r];
        if (softmaxes.col_scale)
          g += exponential(s - load(softmaxes.col_largest + j)) * load(softmaxes.col_scale + j);
        if (softmaxes.binary_scale != 0.f) {
          const Floats x = exponential(s > 0.f ? -s : s);
          g += (s > 0.f ? splat(1.f) : x) / (x + 1.f) * binary_scale;
        }
        if constexpr (kGeneral) {
          if (targets) g -= load(targets + j) * general->target_share[r];
          const Ints left_out = e == -__builtin_inff();
          g = left_out ? Floats{} : g;
          if (general->energy_sum) {
            const Ints skip = left_out | (lane + (int32_t)j == general->own[r]);
            energy_sum += skip ? Floats{} : g * e;
            g_sum += skip ? Floats{} : g;
          }
          g = g * general->scale;
        }
        if constexpr (energy == Energy::kNorm) g = e == 0.f ? Floats{} : g / e;
        if constexpr (energy == Energy::kL2) g = g * -2.f;
        if constexpr (energy == Energy::kNorm || energy == Energy::kL2) {
          const Floats squared = energy == Energy::kNorm ? e * e : -e;
          close |= squared * 4.f < load(squares.psi + j) + squares.phi[r];
        }
        store(tile + j, g);
      }
      int32_t any = energy == Energy::kMrn;
      for (int l = 0; l < kLanes; ++l) any |= close[l];
      if (any) near[r / kBlockRows * (kTileCols / kBlockCols) + block] = true;
    }
    if constexpr (kGeneral) {
      if (!general->energy_sum) continue;
      general->energy_sum[r * general->sum_stride] = sum_of<double>(energy_sum);
      general->sum[r * general->sum_stride] = sum_of<double>(g_sum);
    }
  }
}

template <Energy energy>
void weights_for(const Softmaxes& softmaxes, const Squares& squares, int64_t rows, const General* general,
                 float* tile, bool* near) {
  const auto f = general ? weights_of<energy, true> : weights_of<energy, false>;
  f(softmaxes, squares, rows, general, tile, near);
}

void weights(Energy energy, const Softmaxes& softmaxes, const Squares& squares, int64_t rows,
             const General* general, float* tile, bool* near) {
  for (int64_t block = 0; block < kTileBlocks; ++block) near[block] = false;
  if (energy == Energy::kNorm) weights_for<Energy::kNorm>(softmaxes, squares, rows, general, tile, near);
  if (energy == Energy::kL2) weights_for<Energy::kL2>(softmaxes, squares, rows, general, tile, near);
  if (energy == Energy::kDot) weights_for<Energy::kDot>(softmaxes, squares, rows, general, tile, near);
  if (energy == Energy::kMrn) weights_for<Energy::kMrn>(softmaxes, squares, rows, general, tile, near);
}

void split(int64_t rows, float* tile, float* roots) {
  for (int64_t at = 0; at < rows * kTileCols; at += kLanes) {
    const Floats g = load(tile + at);
    store(tile + at, -g / load(roots + at));
    store(roots + at, g);
  }
}

void square(const float* x, int64_t rows, int64_t d, float* squares) {
  for (int64_t i = 0; i < rows; ++i, x += d) {
    Floats sum{};
    for (int64_t k = 0; k < d; k += kLanes) sum += load(x + k) * load(x + k);
    squares[i] = sum_of<float>(sum);
  }
}

#include "info_nce_accumulate.h"

}  // namespace
}  // namespace deepres::nce
