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
constexpr int kRows = 4;                         // rows to a register block of logits
constexpr int kNearRows = kWidth == 16 ? 6 : 3;  // and of gradients by differences, which hold x as well
constexpr int kFarRows = 6, kFarVecs = kWidth == 16 ? 4 : 2;  // and of gradients by products
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
void weights_of(const Softmaxes& softmaxes, const Squares& squares, int64_t rows, float* tile, bool* near) {
  for (int64_t r = 0; r < rows; ++r, tile += kTileCols)
    for (int64_t block = 0; block < kTileCols / kBlockCols; ++block) {
      Int close{};
      for (int64_t j = block * kBlockCols; j < (block + 1) * kBlockCols; j += kWidth) {
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
        if constexpr (energy != Energy::kDot) {
          const Vec squared = energy == Energy::kNorm ? s * s : -s;
          close |= squared * 4.f < load(squares.psi + j) + squares.phi[r];
        }
        store(tile + j, g);
      }
      int32_t any = 0;
      for (int l = 0; l < kWidth; ++l) any |= close[l];
      if (any) near[r / kBlockRows * (kTileCols / kBlockCols) + block] = true;
    }
}

void weights(Energy energy, const Softmaxes& softmaxes, const Squares& squares, int64_t rows, float* tile,
             bool* near) {
  for (int64_t block = 0; block < kTileBlocks; ++block) near[block] = false;
  if (energy == Energy::kNorm) weights_of<Energy::kNorm>(softmaxes, squares, rows, tile, near);
  if (energy == Energy::kL2) weights_of<Energy::kL2>(softmaxes, squares, rows, tile, near);
  if (energy == Energy::kDot) weights_of<Energy::kDot>(softmaxes, squares, rows, tile, near);
}

void square(const float* x, int64_t rows, int64_t d, float* squares) {
  for (int64_t i = 0; i < rows; ++i, x += d) {
    Vec sum{};
    for (int64_t k = 0; k < d; k += kWidth) sum += load(x + k) * load(x + k);
    squares[i] = sum_of<float>(sum);
  }
}

// How a block of gradients is summed: pairs that are near lose no digits as weighted differences; where all
// are far, sum_j w (x - y_j) = x sum_j w - sum_j w y_j costs half and cancels little.
enum class Sum { kDot, kFar, kNear };

// kVecs vectors of features of `count` rows of dx stay in registers while all of y passes.
template <Sum how, int count, int kVecs>
void accumulate_features(const float* x, int64_t nx, const float* y, int64_t ny, int64_t d, const float* w,
                         int64_t wx, int64_t wy, const float* w_sum, float* dx) {
  constexpr bool near = how == Sum::kNear;
  for (int64_t row = 0; row < nx; row += count) {
    const int rows = nx - row < count ? (int)(nx - row) : count;
    const float* scale[count];
    Vec here[count][near ? kVecs : 1], sum[count][kVecs] = {};
    for (int r = 0; r < count; ++r) {
      const int64_t at = row + (r < rows ? r : rows - 1);
      scale[r] = w + at * wx;
      if constexpr (near)
        for (int v = 0; v < kVecs; ++v) here[r][v] = load(x + at * d + v * kWidth);
    }
    for (int64_t j = 0; j < ny; ++j) {
      Vec there[kVecs];
      for (int v = 0; v < kVecs; ++v) there[v] = load(y + j * d + v * kWidth);
      for (int r = 0; r < count; ++r) {
        const Vec g = splat(scale[r][j * wy]);
        for (int v = 0; v < kVecs; ++v) {
          if constexpr (near)
            sum[r][v] += g * (here[r][v] - there[v]);
          else
            sum[r][v] += g * there[v];
        }
      }
    }
    for (int r = 0; r < rows; ++r)
      for (int v = 0; v < kVecs; ++v) {
        const int64_t at = (row + r) * d + v * kWidth;
        Vec s = sum[r][v];
        if constexpr (how == Sum::kFar) s = load(x + at) * w_sum[row + r] - s;
        store(dx + at, load(dx + at) + s);
      }
  }
}

template <Sum how>
void accumulate_as(const float* x, int64_t nx, const float* y, int64_t ny, int64_t d, const float* w,
                   int64_t wx, int64_t wy, const float* w_sum, float* dx) {
  constexpr int rows = how == Sum::kNear ? kNearRows : kFarRows, vecs = how == Sum::kNear ? 2 : kFarVecs;
  int64_t k = 0;
  for (; k + vecs * kWidth <= d; k += vecs * kWidth)
    accumulate_features<how, rows, vecs>(x + k, nx, y + k, ny, d, w, wx, wy, w_sum, dx + k);
  for (; k < d; k += kWidth)
    accumulate_features<how, rows, 1>(x + k, nx, y + k, ny, d, w, wx, wy, w_sum, dx + k);
}

// sums[i] = sum_j w[i wx + j wy]; one of wx and wy is 1.
void sum_weights(const float* w, int64_t nx, int64_t ny, int64_t wx, int64_t wy, float* sums) {
  for (int64_t i = 0; i < nx; ++i) sums[i] = 0;
  if (wx == 1) {
    for (int64_t j = 0; j < ny; ++j)
      for (int64_t i = 0; i < nx; ++i) sums[i] += w[i + j * wy];
    return;
  }
  for (int64_t i = 0; i < nx; ++i, w += wx) {
    Vec sum{};
    int64_t j = 0;
    for (; j + kWidth <= ny; j += kWidth) sum += load(w + j);
    sums[i] = sum_of<float>(sum);
    for (; j < ny; ++j) sums[i] += w[j];
  }
}

void accumulate(Energy energy, bool near, const float* x, int64_t nx, const float* y, int64_t ny, int64_t d,
                const float* w, int64_t wx, int64_t wy, float* dx) {
  if (energy == Energy::kDot) return accumulate_as<Sum::kDot>(x, nx, y, ny, d, w, wx, wy, nullptr, dx);
  if (near) return accumulate_as<Sum::kNear>(x, nx, y, ny, d, w, wx, wy, nullptr, dx);
  float w_sum[kBlockCols > kBlockRows ? kBlockCols : kBlockRows];
  sum_weights(w, nx, ny, wx, wy, w_sum);
  accumulate_as<Sum::kFar>(x, nx, y, ny, d, w, wx, wy, w_sum, dx);
}

}  // namespace
}  // namespace deepres::nce
