// InfoNCE on the CPU: loss, statistics and gradients, strip by strip, with no [B, M] tensor anywhere.
//
//   sweep over strips of rows of phi; in a strip, tiles are shared out among the threads:
//     logits       a tile each, and what it adds to the statistics of its rows
//     statistics   lse of the strip's rows, which are complete now; columns go on to the next strip
//     weights      logits become dL/dlogit * dlogit/ddistance, in place
//     gradients    dpsi a block of columns each, dphi a block of rows each
//
// Forms with a softmax over columns need one sweep for the statistics before one for the gradients; the
// others are done in one. Every number is summed by one thread in an order that no thread count changes, so
// work may be handed out as threads ask for it: a thread that the system has put aside delays nobody else.

#include <algorithm>
#include <cmath>
#include <vector>

#include "info_nce_columns.h"

namespace deepres::nce {
namespace {

constexpr int64_t kStripFloats = int64_t{1} << 20;  // 4 MB: a strip stays in the last-level cache
constexpr double kInsideSquare = 1e-6;              // the penalty is (lse + 1e-6)^2

int64_t tiles_of(int64_t n, int64_t size) { return (n + size - 1) / size; }

class InfoNce {
 public:
  InfoNce(const Problem& problem, const Kernels& kernels, int threads, const Results& results)
      : p_(problem),
        k_(kernels),
        out_(results),
        threads_(threads),
        dphi_(results.dphi),
        dpsi_(results.dpsi),
        row_tiles_(tiles_of(p_.b, kTileRows)),
        col_tiles_(tiles_of(p_.m, kTileCols)),
        strip_(std::clamp(kStripFloats / (col_tiles_ * kTile), int64_t{1}, row_tiles_)),
        tiles_(strip_ * col_tiles_ * kTile),
        panels_(col_tiles_ * kTileCols * p_.d),
        partial_floats_(2 * strip_ * kTileRows * col_tiles_),
        partial_doubles_((p_.targets ? 4 : 2) * strip_ * kTileRows * col_tiles_),
        near_(strip_ * col_tiles_ * kTileBlocks),
        phi_squares_(row_tiles_ * kTileRows),
        psi_squares_(col_tiles_ * kTileCols),
        row_largest_(row_tiles_ * kTileRows),
        row_scale_(row_tiles_ * kTileRows),
        rows_(p_.b),
        columns_(p_, col_softmax() ? col_tiles_ : 0),
        roots_(mrn() && gradients() ? strip_ * col_tiles_ * kTile : 0),
        places_(mrn() && gradients() ? strip_ * col_tiles_ * kTile : 0),
        target_share_(p_.targets ? p_.b : 0),
        binary_weight_(p_.row_weight ? p_.b : 0),
        general_(p_.targets || p_.scale != 1 || p_.bias != 0 || p_.self >= 0 || sums() ||
                 (p_.row_weight && p_.form == Form::kBinary)) {
    if (p_.row_weight) std::copy_n(p_.row_weight, p_.b, binary_weight_.get());
    for (int64_t i = 0; p_.targets && i < p_.b; ++i) {
      const double share = p_.form == Form::kBinary ? 1 / pairs() : row_share() / p_.count();
      target_share_[i] = static_cast<float>(p_.weight(i) * share);
    }
  }

  void run() {
    sweep(true, gradients() && !col_softmax());
    double col_loss = 0;
    if (col_softmax()) {
      col_loss = columns_.finish(rows_);
      if (gradients()) sweep(false, true);
    }
    summarise(col_loss);
  }

 private:
  bool col_softmax() const { return p_.form == Form::kBackward || p_.form == Form::kSymmetric; }
  double row_share() const { return p_.form == Form::kForward || p_.form == Form::kSymmetric ? 1 : 0; }
  double pairs() const { return p_.count() * static_cast<double>(p_.m - (p_.self >= 0)); }
  bool mrn() const { return p_.energy == Energy::kMrn; }
  bool sums() const { return out_.dscale || out_.dbias; }
  bool gradients() const { return dphi_ || dpsi_ || sums(); }
  int64_t rows_in(int64_t row_tile) const { return std::min(kTileRows, p_.b - row_tile * kTileRows); }
  int64_t cols_in(int64_t col_tile) const { return std::min(kTileCols, p_.m - col_tile * kTileCols); }
  int64_t place(int64_t row_tile, int64_t col_tile) const {
    return ((row_tile % strip_) * col_tiles_ + col_tile) * kTile;
  }
  float* tile(int64_t row_tile, int64_t col_tile) const { return tiles_.get() + place(row_tile, col_tile); }
  bool* near(int64_t row_tile, int64_t col_tile) const {
    return near_.get() + ((row_tile % strip_) * col_tiles_ + col_tile) * kTileBlocks;
  }
  // The logit (later: the weight) of row i's own goal, in the strip that holds row i.
  float* positive(int64_t i) const {
    const int64_t j = p_.own(i);
    return tile(i / kTileRows, j / kTileCols) + (i % kTileRows) * kTileCols + j % kTileCols;
  }
  bool holds_positives(int64_t col_tile) const {
    return p_.labels || ((col_tile + 1) * kTileCols > p_.offset && col_tile * kTileCols < p_.offset + p_.b);
  }
  // Entry of row `row` of the strip for column tile 0; the next column tile's entry follows.
  Partials partials(int64_t row) const {
    const int64_t at = row * col_tiles_, step = strip_ * kTileRows * col_tiles_;
    double* const doubles = &partial_doubles_[0];
    return Partials{&partial_floats_[0],
                    &partial_floats_[step],
                    doubles,
                    doubles + step,
                    p_.targets ? doubles + 2 * step : nullptr,
                    p_.targets ? doubles + 3 * step : nullptr} +
           at;
  }

  // What the tiles' functions are told of a tile beyond its logits.
  General general(int64_t row_tile, int64_t col_tile) const {
    const int64_t row = row_tile * kTileRows, col = col_tile * kTileCols;
    General out{};
    out.scale = p_.scale;
    out.bias = p_.bias;
    out.cols = cols_in(col_tile);
    out.targets = p_.targets ? p_.targets + row * p_.m + col : nullptr;
    out.target_stride = p_.m;
    out.target_share = p_.targets ? &target_share_[row] : nullptr;
    out.binary_weight = p_.row_weight ? &binary_weight_[row] : nullptr;
    return out;
  }

  void sweep(bool statistics, bool gradients) {
#pragma omp parallel num_threads(threads_)
    {
      if (statistics) pack();  // the first sweep of a call
      for (int64_t first = 0; first < row_tiles_; first += strip_) {
        const int64_t last = std::min(first + strip_, row_tiles_);
        logits(first, last, statistics);
        if (statistics) finish_rows(first, last);
        if (statistics && col_softmax()) update_columns(first, last);
        if (gradients) {
          weights(first, last);
          if (sums()) add_sums(first, last);
          if (dpsi_) accumulate_dpsi(first, last);
          if (dphi_) accumulate_dphi(first, last);
        }
      }
    }
  }

  // The steps of a sweep. Each is entered by all threads, shares its loop among them and ends in a barrier.

  void pack() {
#pragma omp for schedule(dynamic) nowait
    for (int64_t c = 0; c < col_tiles_; ++c) {
      k_.pack(p_.psi + c * kTileCols * p_.d, cols_in(c), p_.d, panels_.get() + c * kTileCols * p_.d);
      k_.square(p_.psi + c * kTileCols * p_.d, cols_in(c), p_.d, &psi_squares_[c * kTileCols]);
    }
#pragma omp for schedule(dynamic)
    for (int64_t r = 0; r < row_tiles_; ++r)
      k_.square(p_.phi + r * kTileRows * p_.d, rows_in(r), p_.d, &phi_squares_[r * kTileRows]);
  }

  void logits(int64_t first, int64_t last, bool statistics) {
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t r = first; r < last; ++r)
      for (int64_t c = 0; c < col_tiles_; ++c) {
        const bool more = mrn() && gradients();
        k_.logits(p_.energy, p_.phi + r * kTileRows * p_.d, rows_in(r), panels_.get() + c * kTileCols * p_.d,
                  cols_in(c), p_.d, tile(r, c), more ? &roots_[place(r, c)] : nullptr,
                  more ? &places_[place(r, c)] : nullptr);
        for_diagonal(p_.self, r, c, [&](int64_t i, int64_t j) { tile(r, c)[i * kTileCols + j] = -INFINITY; });
        if (!statistics) continue;
        const Partials out = partials((r - first) * kTileRows) + c;
        const General more_of_tile = general(r, c);
        k_.row_partials(tile(r, c), rows_in(r), cols_in(c), p_.form == Form::kBinary,
                        general_ ? &more_of_tile : nullptr, out, col_tiles_);
      }
  }

  // f(i, j), within the tile, for its pairs of row and column offset + row; none if offset is -1.
  template <typename F>
  void for_diagonal(int64_t offset, int64_t row_tile, int64_t col_tile, F f) const {
    if (offset < 0) return;
    const int64_t row = row_tile * kTileRows, col = col_tile * kTileCols;
    const int64_t begin = std::max(row, col - offset);
    const int64_t end = std::min({row + kTileRows, col + kTileCols - offset, p_.b});
    for (int64_t i = begin; i < end; ++i) f(i - row, offset + i - col);
  }

  void finish_rows(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic, 32)
    for (int64_t i = first * kTileRows; i < std::min(last * kTileRows, p_.b); ++i) {
      const RowSums sums = k_.row_sums(partials(i - first * kTileRows), col_tiles_);
      const double lse = sums.largest + std::log(sums.sum);
      const double mass = p_.targets ? sums.mass : 1, penalty = 2 * p_.penalty * p_.weight_of_penalty(i);
      const double share = (row_share() * p_.weight(i) * mass + penalty * (lse + kInsideSquare)) / p_.count();
      const float energy = *positive(i), logit = general_ ? k_.logit(energy, p_.scale, p_.bias) : energy;
      row_largest_[i] = sums.largest;
      row_scale_[i] = static_cast<float>(share / sums.sum);
      rows_[i] = {lse,
                  share / sums.sum,
                  p_.targets ? sums.target_logit : logit,
                  sums.total,
                  sums.softplus,
                  logit >= sums.largest,
                  p_.weight(i),
                  mass,
                  0,
                  energy,
                  0,
                  0};
    }
  }

  void update_columns(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic)
    for (int64_t c = 0; c < col_tiles_; ++c)
      for (int64_t r = first; r < last && holds_positives(c); ++r) {
        const General more = general(r, c);
        columns_.add(k_, tile(r, c), rows_in(r), general_ ? &more : nullptr, c * kTileCols);
      }
  }

  void weights(int64_t first, int64_t last) {
    const bool rows = row_share() > 0 || p_.penalty > 0;
    const float binary = p_.form == Form::kBinary ? static_cast<float>(1 / pairs()) : 0.f;
#pragma omp for collapse(2) schedule(dynamic)
    for (int64_t r = first; r < last; ++r)
      for (int64_t c = 0; c < col_tiles_; ++c) {
        const Softmaxes softmaxes{&row_largest_[r * kTileRows], rows ? &row_scale_[r * kTileRows] : nullptr,
                                  col_softmax() ? columns_.largest(c * kTileCols) : nullptr,
                                  col_softmax() ? columns_.scale(c * kTileCols) : nullptr, binary};
        const Squares squares{&phi_squares_[r * kTileRows], &psi_squares_[c * kTileCols]};
        General more = general(r, c);
        int32_t here[kTileRows];
        if (sums()) {
          for (int64_t i = 0; i < rows_in(r); ++i)
            here[i] = p_.targets ? -1 : static_cast<int32_t>(p_.own(r * kTileRows + i) - c * kTileCols);
          const Partials read = partials((r - first) * kTileRows) + c;  // of the statistics, by now
          more.own = here;
          more.energy_sum = read.total;
          more.sum = read.softplus;
          more.sum_stride = col_tiles_;
        }
        k_.weights(p_.energy, softmaxes, squares, rows_in(r), general_ ? &more : nullptr, tile(r, c),
                   near(r, c));
        overwrite_positives(r, c);
        if (mrn() && (dphi_ || dpsi_)) k_.split(rows_in(r), tile(r, c), &roots_[place(r, c)]);
      }
  }

  void overwrite_positives(int64_t r, int64_t c) {
    if (p_.targets) return;
    if (!p_.labels)
      return for_diagonal(p_.offset, r, c, [&](int64_t i, int64_t j) {
        tile(r, c)[i * kTileCols + j] = positive_weight(r * kTileRows + i);
      });
    for (int64_t i = r * kTileRows; i < r * kTileRows + rows_in(r); ++i)
      if (p_.own(i) / kTileCols == c) *positive(i) = positive_weight(i);
  }

  // The weight of row i and its own goal, in double: what the softmaxes give there and the -1 nearly cancel.
  float positive_weight(int64_t i) {
    RowLog& row = rows_[i];
    const double s = row.positive, energy = row.energy;
    double g = row.scale * std::exp(s - row_largest_[i]);
    if (row_share() > 0) g -= row.weight / p_.count();
    if (col_softmax()) g += columns_.probability(p_.own(i), s) - row.weight / p_.count();
    if (p_.form == Form::kBinary) g -= row.weight / (1 + std::exp(s)) / pairs();
    row.energy_sum += g * energy;
    row.g_sum += g;
    g *= p_.scale;
    if (p_.energy == Energy::kNorm) return energy == 0 ? 0.f : static_cast<float>(g / energy);
    return static_cast<float>(p_.energy == Energy::kL2 ? -2 * g : g);
  }

  void add_sums(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic, 32)
    for (int64_t i = first * kTileRows; i < std::min(last * kTileRows, p_.b); ++i) {
      const Partials sums = partials(i - first * kTileRows);
      for (int64_t c = 0; c < col_tiles_; ++c) {
        rows_[i].energy_sum += sums.total[c];
        rows_[i].g_sum += sums.softplus[c];
      }
    }
  }

  // dx[i, place] -= sign * w where places say so: the slope of kMrn's largest difference.
  void scatter(float sign, const float* w, const int32_t* places, int64_t nx, int64_t ny, int64_t wx,
               int64_t wy, float* dx) const {
    for (int64_t i = 0; i < nx; ++i)
      for (int64_t j = 0; j < ny; ++j) {
        const int32_t k = places[i * wx + j * wy];
        if (k >= 0) dx[i * p_.d + k] -= sign * w[i * wx + j * wy];
      }
  }

  void accumulate_dpsi(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic) nowait
    for (int64_t j = 0; j < p_.m; j += kBlockCols)
      for (int64_t r = first; r < last; ++r) {
        const int64_t inside = j % kTileCols;
        const bool* flags = near(r, j / kTileCols) + inside / kBlockCols;
        for_runs(flags, kTileCols / kBlockCols, kBlockRows, rows_in(r), [&](int64_t i, int64_t n, bool near) {
          k_.accumulate(p_.energy, near, p_.psi + j * p_.d, std::min(kBlockCols, p_.m - j),
                        p_.phi + (r * kTileRows + i) * p_.d, n, p_.d,
                        tile(r, j / kTileCols) + i * kTileCols + inside, 1, kTileCols, dpsi_ + j * p_.d);
        });
        if (!mrn()) continue;
        const int64_t at = place(r, j / kTileCols) + inside;
        scatter(-1, &roots_[at], &places_[at], std::min(kBlockCols, p_.m - j), rows_in(r), 1, kTileCols,
                dpsi_ + j * p_.d);
      }
    if (!dphi_) {
#pragma omp barrier
    }
  }

  void accumulate_dphi(int64_t first, int64_t last) {
#pragma omp for schedule(dynamic)
    for (int64_t i = first * kTileRows; i < std::min(last * kTileRows, p_.b); i += kBlockRows)
      for (int64_t c = 0; c < col_tiles_; ++c) {
        const int64_t r = i / kTileRows, inside = i % kTileRows;
        const bool* flags = near(r, c) + inside / kBlockRows * (kTileCols / kBlockCols);
        for_runs(flags, 1, kBlockCols, cols_in(c), [&](int64_t j, int64_t n, bool near) {
          k_.accumulate(p_.energy, near, p_.phi + i * p_.d, std::min(kBlockRows, p_.b - i),
                        p_.psi + (c * kTileCols + j) * p_.d, n, p_.d, tile(r, c) + inside * kTileCols + j,
                        kTileCols, 1, dphi_ + i * p_.d);
        });
        if (!mrn()) continue;
        const int64_t at = place(r, c) + inside * kTileCols;
        scatter(1, &roots_[at], &places_[at], std::min(kBlockRows, p_.b - i), cols_in(c), kTileCols, 1,
                dphi_ + i * p_.d);
      }
  }

  // f(begin, length, flag) for the runs of equal flags among n things, a flag to `block` of them.
  template <typename F>
  static void for_runs(const bool* flags, int64_t stride, int64_t block, int64_t n, F f) {
    for (int64_t begin = 0, end; begin < n; begin = end) {
      const bool flag = flags[begin / block * stride];
      for (end = begin; end < n && flags[end / block * stride] == flag;) end = std::min(end + block, n);
      f(begin, end - begin, flag);
    }
  }

  void summarise(double col_loss) const {
    double forward = 0, penalty = 0, positive = 0, own = 0, mass = 0, total = 0, softplus = 0, first = 0;
    double energy_sum = 0, g_sum = 0;
    for (int64_t i = 0; i < p_.b; ++i) {
      const RowLog& row = rows_[i];
      const double inner = row.lse + kInsideSquare, square = p_.weight_of_penalty(i) * inner * inner;
      out_.lse[i] = static_cast<float>(row.lse);
      forward += row.weight * (row.mass * row.lse - row.positive);
      penalty += square;
      positive += row.positive;
      own += row.weight * row.positive;
      mass += row.mass;
      total += row.total;
      softplus += row.weight * row.softplus;
      first += row.first;
      energy_sum += row.energy_sum;
      g_sum += row.g_sum;
      if (!out_.rows) continue;
      double loss = row.columns;
      if (row_share() > 0) loss += row.mass * row.lse - row.positive;
      if (p_.form == Form::kBinary) loss += (row.softplus - row.positive) * p_.count() / pairs();
      out_.rows[i] = static_cast<float>(row.weight * loss + p_.penalty * square);
    }
    double out = p_.penalty * penalty / p_.count() + (row_share() > 0 ? forward / p_.count() : 0) + col_loss;
    if (p_.form == Form::kBinary) out += (softplus - own) / pairs();
    *out_.loss = static_cast<float>(out);
    out_.metrics[0] = static_cast<float>(first / p_.count());
    out_.metrics[1] = static_cast<float>(positive / mass);
    out_.metrics[2] = static_cast<float>((total - positive) / (pairs() - mass));  // NaN without negatives
    if (out_.dscale) *out_.dscale = static_cast<float>(energy_sum);
    if (out_.dbias) *out_.dbias = static_cast<float>(g_sum);
  }

  const Problem p_;
  const Kernels& k_;
  const Results out_;
  const int threads_;
  float *const dphi_, *const dpsi_;              // [b, d], [m, d], zeros; null where not asked for
  const int64_t row_tiles_, col_tiles_, strip_;  // strip_ in row tiles
  Array<float> tiles_, panels_;                  // [strip_, col_tiles_] tiles; psi, packed
  Array<float> partial_floats_;                  // see Partials: 2 x [rows of a strip, col_tiles_]
  Array<double> partial_doubles_;
  Array<bool> near_;                        // [strip_, col_tiles_, kTileBlocks], see Kernels::weights
  Array<float> phi_squares_, psi_squares_;  // see Squares
  Array<float> row_largest_, row_scale_;    // see Softmaxes
  std::vector<RowLog> rows_;
  Columns columns_;
  Array<float> roots_;  // see Kernels::logits; as tiles_
  Array<int32_t> places_;
  Array<float> target_share_, binary_weight_;  // see General
  const bool general_;
};

}  // namespace

void run(const Problem& problem, const Kernels& kernels, int threads, const Results& results) {
  InfoNce(problem, kernels, threads, results).run();
}

}  // namespace deepres::nce
