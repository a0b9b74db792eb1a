// The residual stack on the CPU: who does what. Threads share the stretches of layers and own tiles of rows.
// All schedules are static, so that a thread meets in its own cache what it left there: its rows from stretch
// to stretch, and the operands of its weight gradients from panel to panel.

#include <algorithm>
#include <exception>

#include "cpu/memory.h"
#include "cpu/residual_stack.h"
#include "cpu/threads.h"

namespace deepres {
namespace {

constexpr int64_t kTileRows = 128;     // rows that a thread takes through a stretch at a time, at most
constexpr int64_t kStretchLayers = 8;  // layers of a stretch, at most (or one block, if that is longer)
constexpr int64_t kSpanLayers = 64;    // layers of a span, about
constexpr int64_t kStretchWords = int64_t{6}
                                  << 20;  // what a stretch may leave behind for its weight gradients

int64_t rounded_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t divided_up(int64_t n, int64_t by) { return (n + by - 1) / by; }

// A span is a whole number of units, and is one where nothing is skipped.
int64_t unit(const StackShape& shape) {
  const int64_t layer_words =
      2 * std::max<int64_t>(shape.batch, 1) * shape.padded / (shape.precision ? 2 : 1);
  int64_t layers = std::clamp<int64_t>(kStretchWords / layer_words, 1, kStretchLayers);
  if (shape.skip_every) layers = std::max(layers - layers % shape.skip_every, shape.skip_every);
  return std::min(layers, stack_segment(shape));
}

// Layers of a stretch: what these kernels want, in whole parts of a unit.
int64_t stretch_of(const StackShape& shape, const StackKernels& kernels) {
  const int64_t layer_bytes = 2 * sizeof(float) * std::max<int64_t>(kernels.panels_size(shape), 1);
  int64_t layers = std::clamp<int64_t>(kernels.left_bytes / layer_bytes, 1, unit(shape));
  while (unit(shape) % layers) --layers;
  return layers;
}

// Floats, uninitialised.
class Scratch {
 public:
  explicit Scratch(int64_t count) : memory_(count * sizeof(float)) {}
  float* at(int64_t offset = 0) const { return static_cast<float*>(memory_.data()) + offset; }

 private:
  Memory memory_;
};

// One call: its sizes, and the scratch that forward and backward share. Members that say "all threads" are
// called inside a parallel region by every thread of it.
class Run {
 public:
  Run(const StackShape& shape, const StackParameters& parameters, int threads)
      : shape_(shape),
        parameters_(parameters),
        kernels_(stack_kernels(shape.precision)),
        stretch_(deepres::stretch_of(shape, kernels_)),
        span_(stack_span(shape)),
        tile_(std::clamp(rounded_up(divided_up(shape.batch, threads), kRowBlock), kRowBlock, kTileRows)),
        rows_(rounded_up(shape.batch, tile_)),
        state_(rows_ * shape.padded),
        operands_(rows_ * kernels_.row_words(shape)),
        packed_(2 * stretch_ * kernels_.packed_size(shape)),
        vectors_(3 * shape.depth * shape.padded),
        states_(operands_ + state_),
        works_(threads * work_size(shape)) {}

  float* work() const { return works_.at(thread_index() * work_size(shape_)); }

  // All threads, first of all: clears this thread's work, pads the vectors of all layers.
  void start() const {
    std::fill_n(work(), work_size(shape_), 0.0f);
#pragma omp for schedule(static)
    for (int64_t layer = 0; layer < shape_.depth; ++layer) {
      float* padded = vectors_.at(3 * layer * shape_.padded);
      const float* sources[3] = {parameters_.bias, parameters_.gamma, parameters_.beta};
      for (int i = 0; i < 3; ++i, padded += shape_.padded) {
        const bool given = i == 0 || shape_.norm;
        std::fill_n(padded, shape_.padded, given || i == 2 ? 0.0f : 1.0f);
        if (given) std::copy_n(sources[i] + layer * shape_.width, shape_.width, padded);
      }
    }
  }

  // All threads: layers [first, last), from `in` [batch, in_width], or from where the last call ended if
  // null. Saves n, rstd and streams where saved.n is given; only the input, where saved.streams alone is; y,
  // if given, gets the output.
  void forward(int64_t first, int64_t last, const float* in, int64_t in_width, float* y,
               const StackSaved& saved) const {
    pack(first, std::min(first + stretch_, last), false);
    for (int64_t start = first; start < last; start += stretch_) {
      const int64_t end = std::min(start + stretch_, last);
#pragma omp for schedule(static) nowait
      for (int64_t row = 0; row < rows_; row += tile_) {
        if (start == first && in) load_rows(in, in_width, row, block());
        walk(first, start, end, row, saved);
        if (y && end == last) store_rows(block(), row, std::min(row + tile_, shape_.batch), y);
      }
      pack(end, std::min(end + stretch_, last), false);  // the next ones, while others still walk
    }
  }

 protected:
  float* block() const { return states_.at(operands_); }

  // One tile of rows through layers [start, end) of a run that began at `first`.
  void walk(int64_t first, int64_t start, int64_t end, int64_t row, const StackSaved& saved) const {
    const int64_t row_end = std::min(row + tile_, shape_.batch), inside = shape_.batch * shape_.padded;
    if (saved.streams && (saved.n ? (start - first) % span_ == 0 : start == first)) {
      std::copy_n(block() + row * shape_.padded, (row_end - row) * shape_.padded,
                  saved.streams + (start - first) / span_ * inside + row * shape_.padded);
    }
    ForwardRows rows{common(row, row_end, start, end), states_.at(), block(), start == first};
    if (saved.n) save_at(&rows, saved, start - first);
    kernels_.forward(shape_, rows);
  }

  // Stretches follow each other through two buffers, so that one can be packed while the other is in use.
  float* packed(int64_t first) const {
    return packed_.at(first / stretch_ % 2 * stretch_ * kernels_.packed_size(shape_));
  }

  StackRows common(int64_t row, int64_t row_end, int64_t first, int64_t last) const {
    return {row,     row_end, first, last, packed(first), vectors_.at(3 * first * shape_.padded),
            nullptr, nullptr, work()};
  }

  void save_at(StackRows* rows, const StackSaved& saved, int64_t layer) const {
    rows->n = saved.n + layer * shape_.batch * shape_.padded * kernels_.saved_bytes;
    rows->rstd = saved.rstd + layer * shape_.batch;
  }

  // All threads, who leave together; no layers are no work.
  void pack(int64_t first, int64_t last, bool transposed) const {
    const int64_t parts = shape_.padded / kPad;
#pragma omp for schedule(static)
    for (int64_t task = 0; task < (last - first) * parts; ++task) {
      const int64_t local = task / parts;
      kernels_.pack(shape_, parameters_.weight + (first + local) * shape_.width * shape_.width, transposed,
                    task % parts, packed(first) + local * kernels_.packed_size(shape_), work());
    }
  }

  // A tile of a row state from [batch, width]; what is not covered holds zeros.
  void load_rows(const float* source, int64_t width, int64_t row, float* state) const {
    for (const int64_t end = row + tile_; row < end; ++row) {
      const int64_t real = row < shape_.batch ? width : 0;
      if (real) std::copy_n(source + row * width, real, state + row * shape_.padded);
      std::fill_n(state + row * shape_.padded + real, shape_.padded - real, 0.0f);
    }
  }

  void store_rows(const float* state, int64_t row, int64_t end, float* target) const {
    for (; row < end; ++row)
      std::copy_n(state + row * shape_.padded, shape_.width, target + row * shape_.width);
  }

  const StackShape& shape_;
  const StackParameters& parameters_;
  const StackKernels& kernels_;
  const int64_t stretch_, span_, tile_, rows_, state_, operands_;
  const Scratch packed_, vectors_, states_, works_;
};

class BackwardRun : public Run {
 public:
  BackwardRun(const StackShape& shape, const StackParameters& parameters, const StackGradients& gradients,
              int threads)
      : Run(shape, parameters, threads),
        gradients_(gradients),
        panels_(kernels_.panels_size(shape)),
        blocks_(shape.skip_every ? divided_up(span_, shape.skip_every) : 1),
        left_(gradients.dweight ? (2 * stretch_ + 1 + blocks_) * panels_ : 0),
        layer_sums_(rows_ / kRowBlock * 3 * shape.padded),
        sums_((stretch_ + 1) * layer_sums_),
        gradient_states_(2 * state_) {}

  // All threads: from dy, which the first call loads, back through layers [first, last). A layer's weight
  // gradient wants the output of the one before: it follows one layer later.
  void backward(int64_t first, int64_t last, const float* dy, const StackSaved& saved) const {
    pack(stretch_of(first, last - 1), last, true);
    for (int64_t span = first + (last - first - 1) / span_ * span_; span >= first; span -= span_) {
      const int64_t span_end = std::min(span + span_, last);
      if (gradients_.dweight) rebuild(first, span, span_end, saved);
      for (int64_t start = stretch_of(first, span_end - 1); start >= span; start -= stretch_) {
        const int64_t end = std::min(start + stretch_, span_end);
        chain(first, start, end, span_end, dy, saved);
        finish(span, start + 1, std::min(end + 1, span_end));
        pack(std::max(start - stretch_, first), start, true);  // the next ones, while others still finish
      }
      finish(span, span, span + 1);
#pragma omp barrier
    }
  }

 private:
  int64_t stretch_of(int64_t first, int64_t layer) const {
    return first + (layer - first) / stretch_ * stretch_;
  }

  // What the layers of a stretch, and the one after it, leave behind.
  float* outputs(int64_t layer) const { return left_.at(layer % stretch_ * panels_); }
  float* dus(int64_t layer) const { return left_.at((stretch_ + layer % (stretch_ + 1)) * panels_); }
  float* sums(int64_t layer) const { return sums_.at(layer % (stretch_ + 1) * layer_sums_); }

  float* inputs() const { return left_.at((2 * stretch_ + 1) * panels_); }

  void rebuild(int64_t first, int64_t span, int64_t span_end, const StackSaved& saved) const {
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows_; row += tile_) {
      const int64_t row_end = std::min(row + tile_, shape_.batch);
      const float* stream = saved.streams + (span - first) / span_ * shape_.batch * shape_.padded;
      RebuildRows rows{common(row, row_end, span, span_end), stream, inputs()};
      save_at(&rows, saved, span - first);
      kernels_.rebuild(shape_, rows);
    }
  }

  void chain(int64_t first, int64_t start, int64_t end, int64_t span_end, const float* dy,
             const StackSaved& saved) const {
    float *da = gradient_states_.at(), *dblock = gradient_states_.at(state_);
#pragma omp for schedule(static)
    for (int64_t row = 0; row < rows_; row += tile_) {
      const int64_t row_end = std::min(row + tile_, shape_.batch);
      if (end == shape_.depth) load_rows(dy, shape_.width, row, da);
      for (int64_t layer = end - 1; layer >= start; --layer) {
        BackwardRows rows{common(row, row_end, layer, layer + 1),
                          da,
                          dblock,
                          nullptr,
                          nullptr,
                          sums(layer),
                          layer > 0 || gradients_.dx};
        rows.packed = packed(start) + (layer - start) * kernels_.packed_size(shape_);
        // The inputs of blocks come from `rebuild`.
        const bool wanted = layer + 1 < span_end && !(shape_.skip_every && shape_.ends_block(layer));
        if (gradients_.dweight) {
          rows.du = dus(layer);
          rows.a = wanted ? outputs(layer) : nullptr;
        }
        save_at(&rows, saved, layer - first);
        kernels_.backward(shape_, rows);
      }
      if (start == 0 && gradients_.dx) store_rows(da, row, row_end, gradients_.dx);
    }
  }

  // The gradients of the parameters of layers [start, end), out of what the rows left behind.
  void finish(int64_t span, int64_t start, int64_t end) const {
    const int64_t tasks = 1 + (gradients_.dweight ? shape_.padded / kPad : 0);
#pragma omp for schedule(static) nowait
    for (int64_t task = 0; task < (end - start) * tasks; ++task) {
      const int64_t layer = start + task / tasks, panel = task % tasks - 1;
      if (panel < 0) {
        add_sums(layer);
        continue;
      }
      const bool opens = shape_.skip_every ? shape_.opens_block(layer) : layer == span;
      const int64_t block = shape_.skip_every ? (layer - span) / shape_.skip_every : 0;
      kernels_.weight_gradient(shape_, opens ? inputs() + block * panels_ : outputs(layer - 1), dus(layer),
                               panel, gradients_.dweight + layer * shape_.width * shape_.width, work());
    }
  }

  void add_sums(int64_t layer) const {
    float* targets[3] = {gradients_.dbias, gradients_.dgamma, gradients_.dbeta};
    for (int i = 0; i < 3; ++i) {
      if (!targets[i]) continue;
      float* row = targets[i] + layer * shape_.width;
      std::fill_n(row, shape_.width, 0.0f);
      for (int64_t block = 0; block * kRowBlock < shape_.batch; ++block) {
        const float* more = sums(layer) + (3 * block + i) * shape_.padded;
        for (int64_t j = 0; j < shape_.width; ++j) row[j] += more[j];
      }
    }
  }

  const StackGradients& gradients_;
  const int64_t panels_, blocks_;
  const Scratch left_;
  const int64_t layer_sums_;
  const Scratch sums_, gradient_states_;
};

}  // namespace

int64_t stack_span(const StackShape& shape) {
  const int64_t stretch = unit(shape);
  // Without skips there is nothing to rebuild a stretch's input from.
  return shape.skip_every ? std::max<int64_t>(kSpanLayers / stretch, 1) * stretch : stretch;
}

int64_t stack_segment(const StackShape& shape) {
  return shape.recompute ? std::min(shape.recompute * shape.skip_every, shape.depth) : shape.depth;
}

StackSaved StackSaved::of(const StackShape& shape, int64_t k) const {
  const int64_t inside = shape.batch * shape.padded;
  if (shape.recompute)
    return {nullptr, nullptr, nth(streams, k, divided_up(shape.depth, stack_segment(shape)) * inside)};
  const int64_t statistics = shape.depth * shape.batch + divided_up(shape.depth, stack_span(shape)) * inside;
  return {nth(n, k, shape.depth * inside * stack_kernels(shape.precision).saved_bytes),
          nth(rstd, k, statistics), nth(streams, k, statistics)};
}

namespace {

// run(k, threads) for every member: one after another by all threads, or, where a member has too few rows for
// them, each by a thread of its own. The bits are the same: no sum depends on the threads.
template <class Run>
void each_member(const StackShape& shape, int threads, const Run& run) {
  const int64_t teams = std::min<int64_t>(shape.members, threads);
  if (teams == 1 || divided_up(shape.batch, kRowBlock) > teams) {
    for (int64_t k = 0; k < shape.members; ++k) run(k, threads);
    return;
  }
  std::exception_ptr error;  // nothing may leave a parallel region
#pragma omp parallel for num_threads(static_cast<int>(teams)) schedule(static)
  for (int64_t k = 0; k < shape.members; ++k) {
    try {
      run(k, 1);
    } catch (...) {
#pragma omp critical
      error = std::current_exception();
    }
  }
  if (error) std::rethrow_exception(error);
}

void forward_member(const StackShape& shape, const StackParameters& parameters, const float* x, float* y,
                    const StackSaved& saved, int threads) {
  const Run run(shape, parameters, threads);
  const int64_t segment = stack_segment(shape), inside = shape.batch * shape.padded;
#pragma omp parallel num_threads(threads)
  {
    run.start();
    for (int64_t first = 0; first < shape.depth; first += segment) {
      const int64_t last = std::min(first + segment, shape.depth);
      StackSaved mine = saved;
      if (saved.streams) mine.streams += first / segment * inside;
      run.forward(first, last, first ? nullptr : x, shape.width, last == shape.depth ? y : nullptr, mine);
    }
  }
}

void backward_member(const StackShape& shape, const StackParameters& parameters, const float* dy,
                     const StackSaved& saved, const StackGradients& gradients, int threads) {
  const BackwardRun run(shape, parameters, gradients, threads);
  const int64_t segment = stack_segment(shape), inside = shape.batch * shape.padded;
  const int64_t bytes = stack_kernels(shape.precision).saved_bytes, again = shape.recompute ? segment : 0;
  const Scratch n(divided_up(again * inside * bytes, 4)), rstd(again * shape.batch),
      streams(divided_up(again, stack_span(shape)) * inside);
  const StackSaved computed{reinterpret_cast<char*>(n.at()), rstd.at(), streams.at()};

#pragma omp parallel num_threads(threads)
  {
    run.start();
    for (int64_t first = (shape.depth - 1) / segment * segment; first >= 0; first -= segment) {
      const int64_t last = std::min(first + segment, shape.depth);
      if (shape.recompute)
        run.forward(first, last, saved.streams + first / segment * inside, shape.padded, nullptr, computed);
      run.backward(first, last, dy, shape.recompute ? computed : saved);
    }
  }
}

}  // namespace

void stack_forward(const StackShape& shape, const StackParameters& parameters, const float* x, float* y,
                   const StackSaved& saved, int threads) {
  const int64_t rows = shape.batch * shape.width;
  each_member(shape, threads, [&](int64_t k, int own) {
    forward_member(shape, parameters.of(shape, k), x + k * rows, y + k * rows, saved.of(shape, k), own);
  });
}

void stack_backward(const StackShape& shape, const StackParameters& parameters, const float* dy,
                    const StackSaved& saved, const StackGradients& gradients, int threads) {
  const int64_t rows = shape.batch * shape.width;
  each_member(shape, threads, [&](int64_t k, int own) {
    backward_member(shape, parameters.of(shape, k), dy + k * rows, saved.of(shape, k), gradients.of(shape, k),
                    own);
  });
}

}  // namespace deepres
