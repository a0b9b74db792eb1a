// Every instruction of these kernels that plain C++ cannot say, one function each.
//
// With DEEPRES_HOST the same names come from host/ptx.h, which does the same to the bit with the threads of a
// block as fibers of one CPU thread: no other file here knows whether it runs on a GPU. Every function that
// exchanges data between lanes must be reached by all 32 of them.
#pragma once

using u16 = unsigned short;
using u32 = unsigned int;
using u64 = unsigned long long;
using i64 = long long;

#ifdef DEEPRES_HOST
#include "host/ptx.h"
#else

#define DEEPRES_KERNEL(max_threads) extern "C" __global__ void __launch_bounds__(max_threads, 1)
#define DEEPRES_CLUSTER_KERNEL(max_threads, blocks) \
  extern "C" __global__ void __cluster_dims__(blocks, 1, 1) __launch_bounds__(max_threads, 1)
#define DEEPRES_DEVICE __device__ __forceinline__

// sm_90 brought the copy engine that a single thread can hand a whole stage to.
#if __CUDA_ARCH__ >= 900
#define DEEPRES_BULK_COPY 1
#else
#define DEEPRES_BULK_COPY 0
#endif

namespace deepres::ptx {

DEEPRES_DEVICE int thread_index() { return threadIdx.x; }
DEEPRES_DEVICE i64 block_index() { return blockIdx.x; }
DEEPRES_DEVICE i64 block_index_y() { return blockIdx.y; }
DEEPRES_DEVICE i64 block_count() { return gridDim.x; }
DEEPRES_DEVICE int block_size() { return blockDim.x; }

// The dynamic shared memory of the block, 128-byte aligned.
DEEPRES_DEVICE unsigned char* shared_memory() {
  extern __shared__ __align__(128) unsigned char memory[];
  return memory;
}

DEEPRES_DEVICE u32 shared_address(const void* pointer) {
  return static_cast<u32>(__cvta_generic_to_shared(pointer));
}

// The line that holds *at, on its way to L2.
DEEPRES_DEVICE void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

// The compiler no longer knows the value: what follows from it is computed anew, not kept in registers.
DEEPRES_DEVICE void forget(int& value) { asm volatile("" : "+r"(value)); }

// --- Arithmetic ---

DEEPRES_DEVICE u32 bits(float value) { return __float_as_uint(value); }
DEEPRES_DEVICE float from_bits(u32 word) { return __uint_as_float(word); }

// 2^x, 1/x and 1/sqrt(x) within 2 units in the last place.
DEEPRES_DEVICE float exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEEPRES_DEVICE float reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}
DEEPRES_DEVICE float reciprocal_sqrt(float x) {
  float y;
  asm("rsqrt.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Two floats rounded to nearest even, `low` in the lower half of the word.
DEEPRES_DEVICE u32 pack_bf16(float low, float high) {
  u32 word;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
DEEPRES_DEVICE u32 pack_f16(float low, float high) {
  u32 word;
  asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}
DEEPRES_DEVICE void unpack_f16(u32 word, float& low, float& high) {
  asm("{ .reg .b16 l, h; mov.b32 {l, h}, %2; cvt.f32.f16 %0, l; cvt.f32.f16 %1, h; }"
      : "=f"(low), "=f"(high)
      : "r"(word));
}
// Rounded to the 10 mantissa bits that the tensor cores read of an fp32 word.
DEEPRES_DEVICE u32 round_tf32(float x) {
  u32 word;
  asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(word) : "f"(x));
  return word;
}

// --- Warp and block ---

DEEPRES_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(0xffffffffu, value, mask); }

// The value of another lane.
DEEPRES_DEVICE float shuffle(float value, int lane) { return __shfl_sync(0xffffffffu, value, lane); }

// A value that all lanes of the warp have, told to the compiler as such.
DEEPRES_DEVICE int uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

DEEPRES_DEVICE void sync_warp() { __syncwarp(); }

DEEPRES_DEVICE void sync_threads() { __syncthreads(); }

// Place of the block in its cluster, and a barrier of all the cluster's threads.
DEEPRES_DEVICE int cluster_rank() {
  int rank;
  asm("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
DEEPRES_DEVICE void sync_cluster() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// --- Tensor cores: d += a b. Lane = 4 g + c holds of d [16, 8]: (g, 2c), (g, 2c+1), (g+8, 2c), (g+8, 2c+1).
// ---

// a [16, 16], b [16, 8]: two 16-bit elements in a word.
DEEPRES_DEVICE void mma_bf16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
DEEPRES_DEVICE void mma_f16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
// a [16, 8], b [8, 8]: one fp32 word an element, its 13 lowest bits not read.
DEEPRES_DEVICE void mma_tf32(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
  asm("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, "
      "{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Four 8 x 16-byte matrices of shared memory; lane l names row l % 8 of matrix l / 8. Lane 4 g + c receives
// word c of row g of each; transposed (16-bit elements), elements (2c, g) and (2c+1, g).
DEEPRES_DEVICE void load_matrices(u32 (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}
DEEPRES_DEVICE void load_matrices_transposed(u32 (&words)[4], const void* row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(words[0]), "=r"(words[1]), "=r"(words[2]), "=r"(words[3])
               : "r"(shared_address(row))
               : "memory");
}

// --- Shared-memory barriers that count the bytes of copies ---

DEEPRES_DEVICE void mbarrier_init(u64* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
// Makes fresh barriers visible to the copy engine.
DEEPRES_DEVICE void fence_mbarrier_init() {
#if DEEPRES_BULK_COPY
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
}
// Waits until the phase of this parity has completed.
DEEPRES_DEVICE void mbarrier_wait(u64* barrier, u32 parity) {
#if DEEPRES_BULK_COPY
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#else
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.test_wait.parity.shared.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}

// Arrives, and makes the phase wait for `bytes` more.
DEEPRES_DEVICE void mbarrier_expect(u64* barrier, u32 bytes) {
  asm volatile("{ .reg .b64 state; mbarrier.arrive.expect_tx.shared.b64 state, [%0], %1; }" ::"r"(
                   shared_address(barrier)),
               "r"(bytes)
               : "memory");
}
// mbarrier_wait for what other blocks of the cluster have stored.
DEEPRES_DEVICE void mbarrier_wait_cluster(u64* barrier, u32 parity) {
  asm volatile(
      "{ .reg .pred done;\n"
      "again: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again; }" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}

// --- Stores to the shared memory of block `rank` of the cluster: to the place that `to` is in this block's,
// counted
// --- in bytes by that block's own `barrier`.

DEEPRES_DEVICE u32 peer_address(const void* pointer, int rank) {
  u32 address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(address) : "r"(shared_address(pointer)), "r"(rank));
  return address;
}
DEEPRES_DEVICE void store_peer(void* to, const u32 (&words)[2], u64* barrier, int rank) {
  asm volatile("st.async.shared::cluster.mbarrier::complete_tx::bytes.v2.b32 [%0], {%1, %2}, [%3];" ::"r"(
                   peer_address(to, rank)),
               "r"(words[0]), "r"(words[1]), "r"(peer_address(barrier, rank))
               : "memory");
}
DEEPRES_DEVICE void store_peer(void* to, const u32 (&words)[4], u64* barrier, int rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];" ::"r"(
          peer_address(to, rank)),
      "r"(words[0]), "r"(words[1]), "r"(words[2]), "r"(words[3]), "r"(peer_address(barrier, rank))
      : "memory");
}

// --- Asynchronous copies from global to shared memory ---

// Arrivals that `copy_stage` makes at its barrier.
DEEPRES_DEVICE int copy_stage_arrivals() { return DEEPRES_BULK_COPY ? 1 : 32; }

// One warp starts a copy of `bytes` (a multiple of 512); `barrier` completes its phase when all have landed.
DEEPRES_DEVICE void copy_stage(void* to, const void* from, u32 bytes, u64* barrier, int lane) {
#if DEEPRES_BULK_COPY
  if (lane == 0) {
    mbarrier_expect(barrier, bytes);
    asm volatile(
        "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
            shared_address(to)),
        "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
        : "memory");
  }
#else
  const u32 target = shared_address(to);
  const u64 source = __cvta_generic_to_global(from);
  for (u32 at = 16 * lane; at < bytes; at += 16 * 32)
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(target + at), "l"(source + at) : "memory");
  asm volatile("cp.async.mbarrier.arrive.noinc.shared.b64 [%0];" ::"r"(shared_address(barrier)) : "memory");
#endif
}

// 16 bytes for the calling thread, in groups it can wait for.
DEEPRES_DEVICE void copy_16(void* to, const void* from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(shared_address(to)),
               "l"(__cvta_generic_to_global(from))
               : "memory");
}
DEEPRES_DEVICE void commit_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }
// Waits until at most `pending` of the thread's groups are still under way.
template <int pending>
DEEPRES_DEVICE void wait_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(pending) : "memory");
}

}  // namespace deepres::ptx
#endif
