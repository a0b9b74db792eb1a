// The gradients' sums of info_nce_kernels.h, which includes this inside its own namespace, once for each
// instruction set.

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
    Floats here[count][near ? kVecs : 1], sum[count][kVecs] = {};
    for (int r = 0; r < count; ++r) {
      const int64_t at = row + (r < rows ? r : rows - 1);
      scale[r] = w + at * wx;
      if constexpr (near)
        for (int v = 0; v < kVecs; ++v) here[r][v] = load(x + at * d + v * kLanes);
    }
    for (int64_t j = 0; j < ny; ++j) {
      Floats there[kVecs];
      for (int v = 0; v < kVecs; ++v) there[v] = load(y + j * d + v * kLanes);
      for (int r = 0; r < count; ++r) {
        const Floats g = splat(scale[r][j * wy]);
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
        const int64_t at = (row + r) * d + v * kLanes;
        Floats s = sum[r][v];
        if constexpr (how == Sum::kFar) s = load(x + at) * w_sum[row + r] - s;
        store(dx + at, load(dx + at) + s);
      }
  }
}

template <Sum how>
void accumulate_as(const float* x, int64_t nx, const float* y, int64_t ny, int64_t d, const float* w,
                   int64_t wx, int64_t wy, const float* w_sum, float* dx, int64_t k = 0) {
  constexpr int rows = how == Sum::kNear ? kNearRows : kFarRows, vecs = how == Sum::kNear ? 2 : kFarVecs;
  for (; k + vecs * kLanes <= d; k += vecs * kLanes)
    accumulate_features<how, rows, vecs>(x + k, nx, y + k, ny, d, w, wx, wy, w_sum, dx + k);
  for (; k < d; k += kLanes)
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
    Floats sum{};
    int64_t j = 0;
    for (; j + kLanes <= ny; j += kLanes) sum += load(w + j);
    sums[i] = sum_of<float>(sum);
    for (; j < ny; ++j) sums[i] += w[j];
  }
}

void accumulate(Energy energy, bool near, const float* x, int64_t nx, const float* y, int64_t ny, int64_t d,
                const float* w, int64_t wx, int64_t wy, float* dx) {
  if (energy == Energy::kDot) return accumulate_as<Sum::kDot>(x, nx, y, ny, d, w, wx, wy, nullptr, dx);
  if (energy == Energy::kMrn)
    return accumulate_as<Sum::kNear>(x, nx, y, ny, d, w, wx, wy, nullptr, dx, d / 2);
  if (near) return accumulate_as<Sum::kNear>(x, nx, y, ny, d, w, wx, wy, nullptr, dx);
  float w_sum[kBlockCols > kBlockRows ? kBlockCols : kBlockRows];
  sum_weights(w, nx, ny, wx, wy, w_sum);
  accumulate_as<Sum::kFar>(x, nx, y, ny, d, w, wx, wy, w_sum, dx);
}
