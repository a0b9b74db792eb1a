// The warpgroup matrix instructions of sm_90a, one function each; with DEEPRES_HOST the same from
// host/wgmma.h.
//
// Four warps together add a [64, 16] b [16, N] to d [64, N], both operands read from shared memory, while the
// threads go on. Nothing of d may be touched until `wgmma_wait`. An operand lies in core matrices: 8 rows of
// 16 bytes, one behind the other. `describe` says where they are.
#pragma once

#include "ptx.cuh"

#ifdef DEEPRES_HOST
#include "host/wgmma.h"
#else

namespace deepres::ptx {

// copy_stage on sm_90, told to the compiler as what one lane of a warp does that is together.
DEEPRES_DEVICE void copy_square(void* to, const void* from, u32 bytes, u64* barrier, int) {
  asm volatile(
      "{ .reg .pred one; .reg .b64 state;\n"
      "elect.sync _|one, 0xffffffff;\n"
      "@one mbarrier.arrive.expect_tx.shared.b64 state, [%3], %2;\n"
      "@one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3]; }" ::"r"(
          shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
}
// Threads' stores to shared memory that the caller has seen are there for the tensor cores too, which read it
// by another way. What copies have brought is there without.
DEEPRES_DEVICE void fence_stores(const void*, int) {
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
// Before the first product, and after other instructions have touched d.
DEEPRES_DEVICE void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
DEEPRES_DEVICE void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

// Until all products that were committed are in d.
DEEPRES_DEVICE void wgmma_wait(float (&d)[8]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
                 "+f"(d[7])
               :
               : "memory");
}
DEEPRES_DEVICE void wgmma_wait(float (&d)[16]) {
  asm volatile("wgmma.wait_group.sync.aligned 0;"
               : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]),
                 "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]),
                 "+f"(d[14]), "+f"(d[15])
               :
               : "memory");
}

// d += a b, or d = a b without `add`. Lane 4 g + c of warp w holds of d, in the order [n / 8][2][2], rows
// 16 w + g and 16 w + g + 8 of columns n = 8 i + 2 c and the next. major_a, major_b: 1 where 8 neighbouring
// rows of a, columns of b, are the 16 bytes of a core matrix's row; 0 where 8 neighbours along the sum are.
#define DEEPRES_WGMMA(name, type)                                                                         \
  template <int major_a, int major_b>                                                                     \
  DEEPRES_DEVICE void name(float (&d)[8], u64 a, u64 b, bool add) {                                       \
    asm volatile(                                                                                         \
        "{ .reg .pred add; setp.ne.b32 add, %10, 0;\n"                                                    \
        "wgmma.mma_async.sync.aligned.m64n16k16.f32." type "." type                                       \
        " {%0,%1,%2,%3,%4,%5,%6,%7}, %8, %9, add, 1, 1, %11, %12; }"                                      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])  \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(major_a), "n"(major_b));                        \
  }                                                                                                       \
  template <int major_a, int major_b>                                                                     \
  DEEPRES_DEVICE void name(float (&d)[16], u64 a, u64 b, bool add) {                                      \
    asm volatile(                                                                                         \
        "{ .reg .pred add; setp.ne.b32 add, %18, 0;\n"                                                    \
        "wgmma.mma_async.sync.aligned.m64n32k16.f32." type "." type                                       \
        " {%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15}, %16, %17, add, 1, 1, %19, %20; }"      \
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), \
          "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), "+f"(d[12]), "+f"(d[13]), "+f"(d[14]),        \
          "+f"(d[15])                                                                                     \
        : "l"(a), "l"(b), "r"(static_cast<int>(add)), "n"(major_a), "n"(major_b));                        \
  }
DEEPRES_WGMMA(wgmma_bf16, "bf16")
DEEPRES_WGMMA(wgmma_f16, "f16")
#undef DEEPRES_WGMMA

}  // namespace deepres::ptx
#endif

namespace deepres::ptx {

// Where an operand's core matrices are, without swizzling: the first at `start`; the next along the sum, and
// the next along the other dimension, so many bytes further, all multiples of 16. PTX calls the one along the
// sum the leading dimension's offset, the other the stride dimension's.
DEEPRES_DEVICE u64 describe(const void* start, u32 along_sum, u32 across) {
  const u64 address = (shared_address(start) & 0x3ffff) >> 4;
  return address | static_cast<u64>(along_sum >> 4) << 16 | static_cast<u64>(across >> 4) << 32;
}

}  // namespace deepres::ptx
