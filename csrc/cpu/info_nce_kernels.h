// The tile functions of info_nce.h for one vector width, on the compiler's own vector types.
//
// Included once by each info_nce_<instruction set>.cpp, inside that file's target pragma, with kWidth (floats
// to a vector) and kPanels (vectors of columns to a register block) defined. Everything here is local to the
// including file, so that no function of one instruction set can stand in for another's.

#ifndef DEEPRES_NCE_WIDTH
#error "define DEEPRES_NCE_WIDTH and DEEPRES_NCE_PANELS first"
#endif

namespace deepres::nce {
namespace {

constexpr int kWidth = DEEPRES_NCE_WIDTH, kPanels = DEEPRES_NCE_PANELS;
constexpr int kRows = 4;                             // rows to a register block of logits
constexpr int kGradientRows = kWidth == 16 ? 6 : 3;  // and of gradients, where x stays in registers as well
constexpr int64_t kRun = 64;  // features summed in a row; longer sums are sums of runs, which round less

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t Int __attribute__((vector_size(4 * kWidth)));

inline Vec load(const float* p) {
  Vec v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}
inline void store(float* p, Vec v) { __builtin_memcpy(p, &v, sizeof v); }
inline Vec splat(float x) { return Vec{} + x; }
inline Vec larger(Vec a, Vec b) { return a > b ? a : b; }
inline Vec square_root(Vec v) {
  for (int l = 0; l < kWidth; ++l) v[l] = __builtin_sqrtf(v[l]);
  return v;
}
template <typename T>
inline T sum_of(Vec v) {
  T s = 0;
  for (int l = 0; l < kWidth; ++l) s += v[l];
  return s;
}
inline float largest_of(Vec v) {
  float m = v[0];
  for (int l = 1; l < kWidth; ++l) m = v[l] > m ? v[l] : m;
  return m;
}

// exp(x) for x <= 0 to about one unit in the last place; 0 below -87, NaN for NaN.
inline Vec exponential(Vec x) {
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it leaves round(x / ln 2) in the low bits
  Vec n = x * 1.44269504f + magic;
  Int bits = (Int)n;
  n = n - magic;
  Vec r = x - n * 0.693359375f;  // ln 2 in two parts, the first short enough for an exact product
  r = r + n * 2.12194440e-4f;
  // (exp(r) - 1 - r) / r^2 on |r| <= ln(2) / 2, interpolated at Chebyshev points: relative error 1.1e-8
  Vec q = splat(0.00139336509f);
  q = q * r + 0.00836317986f;
  q = q * r + 0.0416664667f;
  q = q * r + 0.166665763f;
  q = q * r + 0.5f;
  Vec y = (q * r) * r + r + 1.f;
  y = y * (Vec)((bits - 0x4B400000 + 127) << 23);
  return x < -87.f ? Vec{} : y;
}

// log(1 + e) for 0 <= e <= 1, relative error about 1e-7 down to the smallest e: 2 atanh(e / (2 + e)).
inline Vec log_one_plus(Vec e) {
  Vec t = e / (e + 2.f), z = t * t;
  Vec q = splat(1.f / 15);
  q = q * z + 1.f / 13;
  q = q * z + 1.f / 11;
  q = q * z + 1.f / 9;
  q = q * z + 1.f / 7;
  q = q * z + 1.f / 5;
  q = q * z + 1.f / 3;
  return (q * z) * (t + t) + (t + t);
}

void pack(const float* psi, int64_t cols, int64_t d, float* panels) {
  for (int64_t first = 0; first < kTileCols; first += kWidth, panels += d * kWidth)
    for (int64_t k = 0; k < d; ++k)
      for (int64_t l = 0; l < kWidth; ++l)
        panels[k * kWidth + l] = first + l < cols ? psi[(first + l) * d + k] : 0.f;
}

template <Energy energy>
void logits_of(const float* phi, int64_t rows, const float* panels, int64_t cols, int64_t d, float* tile) {
  constexpr int block = kPanels * kWidth;
  for (int64_t first = 0; first < cols; first += block, panels += d * block) {
    for (int64_t row = 0; row < rows; row += kRows) {
      const float* x[kRows];
      for (int r = 0; r < kRows; ++r) x[r] = phi + (row + r < rows ? row + r : rows - 1) * d;
      Vec total[kRows][kPanels] = {};
      for (int64_t start = 0; start < d; start += kRun) {
        const int64_t stop = start + kRun < d ? start + kRun : d;
        Vec sum[kRows][kPanels] = {};
        for (int64_t k = start; k < stop; ++k) {
          Vec y[kPanels];
          for (int p = 0; p < kPanels; ++p) y[p] = load(panels + (p * d + k) * kWidth);
          for (int r = 0; r < kRows; ++r) {
            const Vec xr = splat(x[r][k]);
            for (int p = 0; p < kPanels; ++p) {
              if constexpr (energy == Energy::kDot) {
                sum[r][p] += xr * y[p];
              } else {  // differences first, squares after: nearly equal pairs lose no digits
                const Vec t = xr - y[p];
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
          Vec s = total[r][p];
          if constexpr (energy == Energy::kNorm) s = -square_root(s);
          if constexpr (energy == Energy::kL2) s = -s;
          store(tile + (row + r) * kTileCols + first + p * kWidth, s);
        }
    }
  }
  if (cols < kTileCols)
    for (int64_t row = 0; row < rows; ++row)
      for (int64_t j = cols; j < kTileCols; ++j) tile[row * kTileCols + j] = -__builtin_inff();
}

void logits(Energy energy, const float* phi, int64_t rows, const float* panels, int64_t cols, int64_t d,
            float* tile) {
  if (energy == Energy::kNorm) logits_of<Energy::kNorm>(phi, rows, panels, cols, d, tile);
  if (energy == Energy::kL2) logits_of<Energy::kL2>(phi, rows, panels, cols, d, tile);
  if (energy == Energy::kDot) logits_of<Energy::kDot>(phi, rows, panels, cols, d, tile);
}

void row_partials(const float* tile, int64_t rows, int64_t cols, bool binary, Partials out, int64_t stride) {
  Int lane;
  for (int l = 0; l < kWidth; ++l) lane[l] = l;
  for (int64_t r = 0; r < rows; ++r, tile += kTileCols) {
    Vec most = load(tile);
    for (int64_t j = kWidth; j < kTileCols; j += kWidth) most = larger(load(tile + j), most);
    const float largest = largest_of(most);
    Vec sum{}, total{}, softplus{};
    for (int64_t j = 0; j < kTileCols; j += kWidth) {
      const Vec s = load(tile + j);
      sum += exponential(s - largest);
      total += lane + (int32_t)j < (int32_t)cols ? s : Vec{};
    }
    if (binary)
      for (int64_t j = 0; j < kTileCols; j += kWidth) {
        const Vec s = load(tile + j);
        softplus += larger(s, Vec{}) + log_one_plus(exponential(s > 0.f ? -s : s));
      }
    out.largest[r * stride] = largest;
    out.sum[r * stride] = sum_of<float>(sum);
    out.total[r * stride] = sum_of<double>(total);
    out.softplus[r * stride] = sum_of<double>(softplus);
  }
}

RowSums row_sums(Partials partials, int64_t tiles) {
  RowSums out{partials.largest[0], 0, 0, 0};
  for (int64_t t = 1; t < tiles; ++t)
    out.largest = partials.largest[t] > out.largest ? partials.largest[t] : out.largest;
  for (int64_t t = 0; t < tiles; t += kWidth) {
    const int64_t n = tiles - t < kWidth ? tiles - t : kWidth;
    Vec largest = splat(-__builtin_inff());
    for (int64_t l = 0; l < n; ++l) largest[l] = partials.largest[t + l];
    const Vec factor = exponential(largest - out.largest);
    for (int64_t l = 0; l < n; ++l) {
      out.sum += (double)factor[l] * partials.sum[t + l];
      out.total += partials.total[t + l];
      out.softplus += partials.softplus[t + l];
    }
  }
  return out;
}

void col_sums(const float* tile, int64_t rows, float* largest, float* sum) {
  for (int64_t j = 0; j < kTileCols; j += kWidth) {
    const Vec before = load(largest + j);
    Vec most = before;
    for (int64_t r = 0; r < rows; ++r) most = larger(load(tile + r * kTileCols + j), most);
    Vec total = load(sum + j) * exponential(before - most), here{};
    for (int64_t r = 0; r < rows; ++r) here += exponential(load(tile + r * kTileCols + j) - most);
    store(largest + j, most);
    store(sum + j, total + here);
  }
}

template <Energy energy>
void weights_of(const Softmaxes& softmaxes, int64_t rows, float* tile) {
  for (int64_t r = 0; r < rows; ++r, tile += kTileCols)
    for (int64_t j = 0; j < kTileCols; j += kWidth) {
      const Vec s = load(tile + j);
      Vec g{};
      if (softmaxes.row_scale) g = exponential(s - softmaxes.row_largest[r]) * softmaxes.row_scale[r];
      if (softmaxes.col_scale)
        g += exponential(s - load(softmaxes.col_largest + j)) * load(softmaxes.col_scale + j);
      if (softmaxes.binary_scale != 0.f) {
        const Vec e = exponential(s > 0.f ? -s : s);
        g += (s > 0.f ? splat(1.f) : e) / (e + 1.f) * softmaxes.binary_scale;
      }
      if constexpr (energy == Energy::kNorm) g = s == 0.f ? Vec{} : g / s;
      if constexpr (energy == Energy::kL2) g = g * -2.f;
      store(tile + j, g);
    }
}

void weights(Energy energy, const Softmaxes& softmaxes, int64_t rows, float* tile) {
  if (energy == Energy::kNorm) weights_of<Energy::kNorm>(softmaxes, rows, tile);
  if (energy == Energy::kL2) weights_of<Energy::kL2>(softmaxes, rows, tile);
  if (energy == Energy::kDot) weights_of<Energy::kDot>(softmaxes, rows, tile);
}

// kVecs vectors of features of kGradientRows rows of dx stay in registers while all of y passes.
template <bool kDifference, int kVecs>
void accumulate_features(const float* x, int64_t nx, const float* y, int64_t ny, int64_t d, const float* w,
                         int64_t wx, int64_t wy, float* dx) {
  for (int64_t row = 0; row < nx; row += kGradientRows) {
    const int rows = nx - row < kGradientRows ? (int)(nx - row) : kGradientRows;
    const float* scale[kGradientRows];
    Vec here[kGradientRows][kVecs], sum[kGradientRows][kVecs] = {};
    for (int r = 0; r < kGradientRows; ++r) {
      const int64_t at = row + (r < rows ? r : rows - 1);
      scale[r] = w + at * wx;
      for (int v = 0; v < kVecs; ++v) here[r][v] = load(x + at * d + v * kWidth);
    }
    for (int64_t j = 0; j < ny; ++j) {
      Vec there[kVecs];
      for (int v = 0; v < kVecs; ++v) there[v] = load(y + j * d + v * kWidth);
      for (int r = 0; r < kGradientRows; ++r) {
        const Vec g = splat(scale[r][j * wy]);
        for (int v = 0; v < kVecs; ++v) sum[r][v] += g * (kDifference ? here[r][v] - there[v] : there[v]);
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < kVecs; ++v) {
        float* out = dx + (row + r) * d + v * kWidth;
        store(out, load(out) + sum[r][v]);
      }
  }
}

void accumulate(Energy energy, const float* x, int64_t nx, const float* y, int64_t ny, int64_t d,
                const float* w, int64_t wx, int64_t wy, float* dx) {
  int64_t k = 0;
  for (; k + 2 * kWidth <= d; k += 2 * kWidth)
    if (energy == Energy::kDot)
      accumulate_features<false, 2>(x + k, nx, y + k, ny, d, w, wx, wy, dx + k);
    else
      accumulate_features<true, 2>(x + k, nx, y + k, ny, d, w, wx, wy, dx + k);
  for (; k < d; k += kWidth)
    if (energy == Energy::kDot)
      accumulate_features<false, 1>(x + k, nx, y + k, ny, d, w, wx, wy, dx + k);
    else
      accumulate_features<true, 1>(x + k, nx, y + k, ny, d, w, wx, wy, dx + k);
}

}  // namespace
}  // namespace deepres::nce
