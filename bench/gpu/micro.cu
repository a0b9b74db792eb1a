// What bench/gpu/model.py assumes of a GPU, measured: copies into shared memory, exchanges within a cluster,
// barriers, dependent matrix products. Every kernel writes {cycles, nanoseconds} of its repetitions, a pair
// for each block.
//
// MICRO_CLUSTER: blocks of a cluster (1, 2, 4 or 8). MICRO_WORDS: 32-bit words of one store to a neighbour (2
// or 4). MICRO_ACQUIRE: whether a wait for a neighbour's store acquires at the scope of the cluster.
// MICRO_WARPGROUP: whether warpgroups multiply too, which sm_90a alone has.
#include "ptx.cuh"
#if MICRO_WARPGROUP
#include "wgmma_ptx.cuh"
#endif

#if MICRO_CLUSTER > 1
#define MICRO_KERNEL DEEPRES_CLUSTER_KERNEL(128, MICRO_CLUSTER)
#else
#define MICRO_KERNEL DEEPRES_KERNEL(128)
#endif

namespace ptx = deepres::ptx;

namespace {

constexpr int kStages = 4;

DEEPRES_DEVICE i64 cycles() { return clock64(); }
DEEPRES_DEVICE i64 nanoseconds() {
  i64 now;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(now));
  return now;
}

// From construction to `write`, by the block's first thread.
class Clock {
 public:
  DEEPRES_DEVICE Clock() : cycles_(cycles()), nanoseconds_(nanoseconds()) {}
  DEEPRES_DEVICE void write(i64* out) {
    const i64 spent = cycles() - cycles_, passed = nanoseconds() - nanoseconds_;
    if (ptx::thread_index() != 0) return;
    out[2 * ptx::block_index()] = spent;
    out[2 * ptx::block_index() + 1] = passed;
  }

 private:
  i64 cycles_, nanoseconds_;
};

DEEPRES_DEVICE void wait(u64* barrier, u32 parity) {
#if MICRO_ACQUIRE
  ptx::mbarrier_wait_cluster(barrier, parity);
#else
  ptx::mbarrier_wait(barrier, parity);
#endif
}

}  // namespace

// One warp copies `repeats` pieces of `bytes` (at most 8 KB) from global to shared memory, kStages in flight:
// block b walks round the `span` bytes that begin `stride` b bytes into `from`.
MICRO_KERNEL micro_copy(i64* out, const unsigned char* from, i64 stride, i64 span, i64 bytes, i64 repeats) {
  unsigned char* memory = ptx::shared_memory();
  u64* landed = reinterpret_cast<u64*>(memory + kStages * bytes);
  const int lane = ptx::thread_index();
  if (lane >= 32) return;
  if (lane == 0) {
    for (int stage = 0; stage < kStages; ++stage)
      ptx::mbarrier_init(&landed[stage], ptx::copy_stage_arrivals());
    ptx::fence_mbarrier_init();
  }
  ptx::sync_warp();
  const unsigned char* source = from + stride * ptx::block_index();
  Clock clock;
  i64 at = 0;
  for (i64 i = 0; i < repeats + kStages; ++i) {
    const int stage = i % kStages;
    if (i >= kStages) ptx::mbarrier_wait(&landed[stage], (i / kStages - 1) % 2);
    ptx::sync_warp();
    if (i < repeats) {
      ptx::copy_stage(memory + stage * bytes, source + at, static_cast<u32>(bytes), &landed[stage], lane);
      at = at + bytes < span ? at + bytes : 0;
    }
  }
  clock.write(out);
}

#if MICRO_CLUSTER > 1
// Round trips: the first warp of every block stores MICRO_WORDS words a lane to each block of the cluster,
// waits until as much has come from all of them, and goes on. `posts`: how many such stores before each wait.
MICRO_KERNEL micro_exchange(i64* out, i64 posts, i64 repeats) {
  __shared__ __align__(16) u32 board[2][MICRO_CLUSTER][32][MICRO_WORDS];
  __shared__ u64 arrived[2];
  const int thread = ptx::thread_index(), lane = thread % 32;
  const bool first = thread == 0;
  if (first) {
    for (int turn = 0; turn < 2; ++turn) ptx::mbarrier_init(&arrived[turn], 1);
    ptx::fence_mbarrier_init();
  }
  ptx::sync_cluster();
  Clock clock;
  if (thread < 32) {
    u32 words[MICRO_WORDS];
    for (int i = 0; i < MICRO_WORDS; ++i) words[i] = lane;
    for (i64 turn = 0; turn < repeats; ++turn) {
      const int side = turn % 2;  // who posts to one board has read all of the other
      if (first)
        ptx::mbarrier_expect(&arrived[side], static_cast<u32>(posts) * MICRO_CLUSTER * 32 * 4 * MICRO_WORDS);
      for (i64 post = 0; post < posts; ++post)
        for (int rank = 0; rank < MICRO_CLUSTER; ++rank)
          ptx::store_peer(&board[side][ptx::cluster_rank()][lane], words, &arrived[side], rank);
      wait(&arrived[side], turn / 2 % 2);
      words[0] += board[side][(ptx::cluster_rank() + 1) % MICRO_CLUSTER][lane]
                       [0];  // the next post waits for this one
    }
    if (words[0] == 0xffffffffu) out[0] = 0;  // never: keeps the reads
  }
  clock.write(out);
  ptx::sync_threads();
  ptx::sync_cluster();  // nobody leaves while a neighbour's store is under way
}

// The barrier of all the cluster's threads.
MICRO_KERNEL micro_barrier(i64* out, i64 repeats) {
  ptx::sync_cluster();
  Clock clock;
  for (i64 i = 0; i < repeats; ++i) ptx::sync_cluster();
  clock.write(out);
}
#endif

// `chains` independent chains (1, 2 or 4) of dependent 16 x 8 x 16 bf16 products in each of the block's
// warps.
template <int chains>
DEEPRES_DEVICE void products(i64* out, i64 repeats) {
  float sums[chains][4] = {};
  const u32 one = ptx::pack_bf16(1.0f, 1.0f);
  const u32 a[4] = {one, one, one, one};
  ptx::sync_threads();
  Clock clock;
  for (i64 i = 0; i < repeats; ++i)
#pragma unroll
    for (int chain = 0; chain < chains; ++chain) ptx::mma_bf16(sums[chain], a, one, one);
  float all = 0;
  for (int chain = 0; chain < chains; ++chain) all += sums[chain][0];
  if (all < 0) out[0] = 0;  // never: keeps the products
  clock.write(out);
}
MICRO_KERNEL micro_products_1(i64* out, i64 repeats) { products<1>(out, repeats); }
MICRO_KERNEL micro_products_2(i64* out, i64 repeats) { products<2>(out, repeats); }
MICRO_KERNEL micro_products_4(i64* out, i64 repeats) { products<4>(out, repeats); }

#if MICRO_WARPGROUP
// A layer's product where operands are swapped: 64 x 256 weights by 256 x `rows`, 16 dependent warpgroup
// products and the wait for them.
template <int rows>
DEEPRES_DEVICE void warpgroup_products(i64* out, i64 repeats) {
  constexpr int kSquare = 8192, kApart = 160, kAlong = rows / 8 * kApart, kRowBytes = 32 * kAlong;
  unsigned char* memory = ptx::shared_memory();
  for (int at = ptx::thread_index(); at < (4 * kSquare + kRowBytes) / 4; at += 128)
    reinterpret_cast<u32*>(memory)[at] = 0;
  ptx::sync_threads();
  float sums[rows / 2] = {};
  const u64 a = ptx::describe(memory, 1024, 128), b = ptx::describe(memory + 4 * kSquare, kAlong, kApart);
  Clock clock;
  for (i64 i = 0; i < repeats; ++i) {
    ptx::fence_stores(memory, 4 * kSquare + kRowBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < 16; ++step)
      ptx::wgmma_bf16<1, 1>(sums, a + step * 2048 / 16, b + step * 2 * kAlong / 16, true);
    ptx::wgmma_commit();
    ptx::wgmma_wait(sums);
  }
  if (sums[0] < 0) out[0] = 0;  // never: keeps the products
  clock.write(out);
}
MICRO_KERNEL micro_warpgroup_16(i64* out, i64 repeats) { warpgroup_products<16>(out, repeats); }
MICRO_KERNEL micro_warpgroup_32(i64* out, i64 repeats) { warpgroup_products<32>(out, repeats); }
#endif
