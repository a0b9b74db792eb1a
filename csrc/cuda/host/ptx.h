// ptx.cuh on a CPU: each instruction over the lanes of a warp of fibers, with the GPU's own fragment layouts.
#pragma once

#include <algorithm>
#include <cmath>

#include "fibers.h"

#define DEEPRES_KERNEL(max_threads) void
#define DEEPRES_CLUSTER_KERNEL(max_threads, blocks) void
#define DEEPRES_DEVICE inline

namespace deepres::ptx {

using host::Cluster;

inline int thread_index() { return Cluster::current()->fiber().thread; }
inline i64 block_index() { return Cluster::current()->index + Cluster::current()->fiber().rank; }
inline i64 block_index_y() { return Cluster::current()->index_y; }
inline i64 block_count() { return Cluster::current()->count; }
inline int block_size() { return Cluster::current()->threads(); }
inline unsigned char* shared_memory() { return Cluster::current()->shared(); }
inline void prefetch(const void*) {}
inline void forget(int&) {}
inline int uniform(int value) { return value; }

// --- Arithmetic ---

inline u32 bits(float value) {
  u32 word;
  std::memcpy(&word, &value, sizeof word);
  return word;
}
inline float from_bits(u32 word) {
  float value;
  std::memcpy(&value, &word, sizeof value);
  return value;
}
inline float exp2(float x) { return std::exp2(x); }
inline float reciprocal(float x) { return 1.0f / x; }
inline float reciprocal_sqrt(float x) { return 1.0f / std::sqrt(x); }

inline u16 round_bf16(float x) {
  const u32 word = bits(x);
  if (std::isnan(x)) return static_cast<u16>((word >> 16) | 0x40);
  return static_cast<u16>((word + 0x7fff + ((word >> 16) & 1)) >> 16);
}
inline float from_bf16(u16 half) { return from_bits(static_cast<u32>(half) << 16); }
inline u16 round_f16(float x) {
  const _Float16 half = static_cast<_Float16>(x);
  u16 word;
  std::memcpy(&word, &half, sizeof word);
  return word;
}
inline float from_f16(u16 word) {
  _Float16 half;
  std::memcpy(&half, &word, sizeof half);
  return static_cast<float>(half);
}
inline u32 pack_bf16(float low, float high) {
  return round_bf16(low) | static_cast<u32>(round_bf16(high)) << 16;
}
inline u32 pack_f16(float low, float high) {
  return round_f16(low) | static_cast<u32>(round_f16(high)) << 16;
}
inline void unpack_f16(u32 word, float& low, float& high) {
  low = from_f16(static_cast<u16>(word));
  high = from_f16(static_cast<u16>(word >> 16));
}
inline u32 round_tf32(float x) { return std::isfinite(x) ? (bits(x) + 0x1000) & ~0x1fffu : bits(x); }

// --- Warp and block ---

// Runs `operation(operands of the 32 lanes)` once every lane of the warp has brought its own.
template <class Operands, class Operation>
void collective(Operands& mine, Operation operation) {
  Cluster& cluster = *Cluster::current();
  host::Warp& warp = cluster.warp();
  warp.operands[thread_index() % host::kLanes] = &mine;
  const unsigned generation = warp.generation;
  if (++warp.arrived < host::kLanes) {
    cluster.wait([&warp, generation] { return warp.generation != generation; });
    return;
  }
  Operands* lanes[host::kLanes];
  for (int lane = 0; lane < host::kLanes; ++lane) lanes[lane] = static_cast<Operands*>(warp.operands[lane]);
  operation(lanes);
  warp.arrived = 0;
  ++warp.generation;
}

inline float shuffle_xor(float value, int mask) {
  struct Operands {
    float in, out;
  } mine{value, 0};
  collective(mine, [mask](Operands** lanes) {
    for (int lane = 0; lane < host::kLanes; ++lane) lanes[lane]->out = lanes[lane ^ mask]->in;
  });
  return mine.out;
}

inline float shuffle(float value, int lane) {
  struct Operands {
    float in, out;
    int from;
  } mine{value, 0, lane};
  collective(mine, [](Operands** lanes) {
    for (int to = 0; to < host::kLanes; ++to) lanes[to]->out = lanes[lanes[to]->from]->in;
  });
  return mine.out;
}

inline void sync_warp() {
  int nothing = 0;
  collective(nothing, [](int**) {});
}

inline void meet(host::Barrier& barrier, int threads) {
  const unsigned generation = barrier.generation;
  if (++barrier.arrived < threads) {
    Cluster::current()->wait([&barrier, generation] { return barrier.generation != generation; });
    return;
  }
  barrier.arrived = 0;
  ++barrier.generation;
}
inline void sync_threads() { meet(Cluster::current()->block_barrier(), block_size()); }

inline int cluster_rank() { return Cluster::current()->fiber().rank; }
inline void sync_cluster() {
  meet(Cluster::current()->cluster_barrier(), Cluster::current()->blocks() * block_size());
}

// --- Tensor cores ---

struct MmaOperands {
  float* d;
  const u32* a;
  u32 b[2];
};

// Element e of a word under each format.
inline float element_bf16(u32 word, int e) { return from_bf16(static_cast<u16>(word >> 16 * e)); }
inline float element_f16(u32 word, int e) { return from_f16(static_cast<u16>(word >> 16 * e)); }
inline float element_tf32(u32 word, int) { return from_bits(word & ~0x1fffu); }

// d [16, 8] += a [16, K] b [K, 8], K = 8 words of `per_word` elements; sums in double, rounded once.
template <int per_word, float element(u32, int)>
void mma(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  constexpr int depth = 8 * per_word;
  MmaOperands mine{d, a, {b0, b1}};
  collective(mine, [](MmaOperands** lanes) {
    float left[16][depth], right[depth][8];
    for (int lane = 0; lane < host::kLanes; ++lane) {
      const int g = lane / 4, c = lane % 4;
      for (int e = 0; e < per_word; ++e)
        for (int half = 0; half < 2; ++half) {
          const int k = (c + 4 * half) * per_word + e;
          left[g][k] = element(lanes[lane]->a[2 * half], e);
          left[g + 8][k] = element(lanes[lane]->a[2 * half + 1], e);
          right[k][g] = element(lanes[lane]->b[half], e);
        }
    }
    for (int lane = 0; lane < host::kLanes; ++lane)
      for (int i = 0; i < 4; ++i) {
        const int m = lane / 4 + 8 * (i / 2), n = 2 * (lane % 4) + i % 2;
        double sum = lanes[lane]->d[i];
        for (int k = 0; k < depth; ++k) sum += static_cast<double>(left[m][k]) * right[k][n];
        lanes[lane]->d[i] = static_cast<float>(sum);
      }
  });
}
inline void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma<2, element_bf16>(d, a, b0, b1); }
inline void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma<2, element_f16>(d, a, b0, b1); }
inline void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) { mma<1, element_tf32>(d, a, b0, b1); }

template <bool transposed>
void load_matrices_as(u32 (&words)[4], const void* row) {
  struct Operands {
    const unsigned char* row;
    u32* words;
  } mine{static_cast<const unsigned char*>(row), words};
  collective(mine, [](Operands** lanes) {
    for (int lane = 0; lane < host::kLanes; ++lane)
      for (int matrix = 0; matrix < 4; ++matrix) {
        const int g = lane / 4, c = lane % 4;
        u16 halves[2];
        for (int e = 0; e < 2; ++e) {
          const int r = transposed ? 2 * c + e : g, column = transposed ? g : 2 * c + e;
          std::memcpy(&halves[e], lanes[8 * matrix + r]->row + 2 * column, 2);
        }
        lanes[lane]->words[matrix] = halves[0] | static_cast<u32>(halves[1]) << 16;
      }
  });
}
inline void load_matrices(u32 (&words)[4], const void* row) { load_matrices_as<false>(words, row); }
inline void load_matrices_transposed(u32 (&words)[4], const void* row) { load_matrices_as<true>(words, row); }

// --- Shared-memory barriers that count the bytes of copies ---

struct Mbarrier {
  u16 pending;
  u16 arrivals : 15;
  u16 phase : 1;
  int bytes;

  void settle() {
    if (pending != 0 || bytes != 0) return;
    pending = arrivals;
    phase ^= 1;
  }
};
static_assert(sizeof(Mbarrier) == sizeof(u64));

inline Mbarrier& state(u64* barrier) { return *reinterpret_cast<Mbarrier*>(barrier); }

inline void mbarrier_init(u64* barrier, int arrivals) {
  const u16 count = static_cast<u16>(arrivals);
  state(barrier) = Mbarrier{count, count, 0, 0};
}
inline void fence_mbarrier_init() {}
inline void mbarrier_wait(u64* barrier, u32 parity) {
  Cluster::current()->wait([barrier, parity] { return state(barrier).phase != parity; });
}

inline void mbarrier_expect(u64* barrier, u32 bytes) {
  state(barrier).bytes += static_cast<int>(bytes);
  --state(barrier).pending;
  state(barrier).settle();
}
inline void mbarrier_wait_cluster(u64* barrier, u32 parity) { mbarrier_wait(barrier, parity); }

// --- Stores to other blocks of the cluster ---

template <int count>
void store_peer(void* to, const u32 (&words)[count], u64* barrier, int rank) {
  Cluster& cluster = *Cluster::current();
  u64* counter = reinterpret_cast<u64*>(cluster.peer(barrier, rank));
  host::Copy copy{cluster.peer(to, rank), nullptr, sizeof words, [counter] {
                    state(counter).bytes -= static_cast<int>(sizeof words);
                    state(counter).settle();
                  }};
  std::memcpy(copy.value, words, sizeof words);
  cluster.start(std::move(copy));
}

// --- Asynchronous copies ---

inline int copy_stage_arrivals() { return 1; }

inline void copy_stage(void* to, const void* from, u32 bytes, u64* barrier, int lane) {
  if (lane != 0) return;
  mbarrier_expect(barrier, bytes);
  unsigned char* seen = Cluster::current()->seen(to);
  Cluster::current()->start({to, from, bytes, [to, seen, barrier, bytes] {
                               std::memcpy(seen, to, bytes);
                               state(barrier).bytes -= static_cast<int>(bytes);
                               state(barrier).settle();
                             }});
}

inline void copy_16(void* to, const void* from) {
  const host::Copy copy{to, from, 16, nullptr};
  if (Cluster::current()->eager())
    Cluster::land(copy);
  else
    Cluster::current()->fiber().groups.back().push_back(copy);
}
inline void commit_copies() { Cluster::current()->fiber().groups.emplace_back(); }
template <int pending>
void wait_copies() {
  auto& groups = Cluster::current()->fiber().groups;  // the last one is open still, and not waited for
  while (static_cast<int>(groups.size()) - 1 > pending) {
    for (const host::Copy& copy : groups.front()) Cluster::land(copy);
    groups.erase(groups.begin());
  }
}

}  // namespace deepres::ptx
