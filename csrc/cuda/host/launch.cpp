// The kernels of residual_stack.cu as a library that a CPU runs: the same launch, by name, over 8-byte
// arguments.
//
// Compile with -std=c++17 -DDEEPRES_HOST and the macros of config.cuh.

#include "../residual_stack.cu"

namespace deepres::host {
namespace {

template <class T>
T argument(i64 word) {
  static_assert(sizeof(T) == sizeof word, "every argument of a kernel is 8 bytes");
  T value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}

template <class... Arguments, std::size_t... at>
std::function<void()> thunk(void (*kernel)(Arguments...), const i64* words, std::index_sequence<at...>) {
  return [=] { kernel(argument<Arguments>(words[at])...); };
}
template <class... Arguments>
std::function<void()> thunk(void (*kernel)(Arguments...), const i64* words) {
  return thunk(kernel, words, std::index_sequence_for<Arguments...>());
}

std::function<void()> find(const char* name, const i64* words) {
#define DEEPRES_FIND(kernel) \
  if (std::strcmp(name, #kernel) == 0) return thunk(kernel, words)
  DEEPRES_FIND(residual_stack_pack);
  DEEPRES_FIND(residual_stack_forward);
  DEEPRES_FIND(residual_stack_dgrad);
  DEEPRES_FIND(residual_stack_reduce);
  DEEPRES_FIND(residual_stack_wgrad);
#undef DEEPRES_FIND
  return nullptr;
}

}  // namespace
}  // namespace deepres::host

// Runs every block of the grid in turn, those of a cluster together. 0, or 1 for an unknown kernel, 2 for
// threads that wait for each other.
extern "C" int deepres_launch(const char* name, i64 grid_x, i64 grid_y, i64 threads, i64 shared_bytes,
                              i64 schedule, const i64* words) {
  using namespace deepres::host;
  const std::function<void()> body = find(name, words);
  if (!body) return 1;
  const bool chain = std::strstr(name, "forward") || std::strstr(name, "dgrad");
  static Cluster cluster;
  const int blocks = chain ? deepres::kCluster : 1;
  cluster.count = grid_x;
  for (cluster.index_y = 0; cluster.index_y < grid_y; ++cluster.index_y)
    for (cluster.index = 0; cluster.index < grid_x; cluster.index += blocks)
      if (!cluster.run(blocks, static_cast<int>(threads), shared_bytes, static_cast<unsigned>(schedule),
                       body))
        return 2;
  return 0;
}
