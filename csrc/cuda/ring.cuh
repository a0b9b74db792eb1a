// A warp's weights on their way from L2 to the tensor cores: a ring of stages in shared memory.
//
// A warp reads only the weights of its own columns, and nobody else does: each warp keeps a ring to itself,
// refills a stage as soon as its lanes have read it, and runs ahead over the ends of layers, for weights
// depend on nothing that the block computes. No thread ever waits for another warp here.
#pragma once

#include "team.cuh"

namespace deepres {

class Ring {
 public:
  // Starts the copies. memory: `stages` stages of every warp, 128-byte aligned, then their barriers. packed:
  // the first layer's weights; the next layer's lie `step` bytes on.
  DEEPRES_DEVICE Ring(unsigned char* memory, int stages, const unsigned char* packed, i64 step, i64 layers,
                      const Lane& at)
      : stages_(stages),
        lane_(at.lane),
        memory_(memory + at.warp * stages * kStageBytes),
        landed_(reinterpret_cast<u64*>(memory + kWarps * stages * kStageBytes) + at.warp * stages),
        source_(packed + at.part * kStages * kStageBytes),
        step_(step - kStages * kStageBytes),
        left_(static_cast<int>(layers * kStages)) {
    if (at.lane == 0) {
      for (int stage = 0; stage < stages; ++stage)
        ptx::mbarrier_init(&landed_[stage], ptx::copy_stage_arrivals());
      ptx::fence_mbarrier_init();
    }
    ptx::sync_warp();
    for (int stage = 0; stage < stages; ++stage) refill();
  }

  // The lane's part of the next stage, once it is there: vector `v` of 16 bytes lies 512 v bytes on. Without
  // `wanted`, past the last one, what an old stage left.
  DEEPRES_DEVICE const unsigned char* acquire(bool wanted = true) {
    const unsigned char* stage = memory_ + next_ * kStageBytes + lane_ * 16;
    if (wanted) ptx::mbarrier_wait(&landed_[next_], phase_);
    if (++next_ == stages_) next_ = 0, phase_ ^= 1;
    return stage;
  }
  // The oldest stage that was acquired, and read by the lane, may be filled anew.
  DEEPRES_DEVICE void release() {
    ptx::sync_warp();
    refill();
  }

 private:
  DEEPRES_DEVICE void refill() {
    if (left_ > 0) {
      ptx::copy_stage(memory_ + oldest_ * kStageBytes, source_, kStageBytes, &landed_[oldest_], lane_);
      --left_;
      source_ += kStageBytes;
      if (left_ % kStages == 0) source_ += step_;
    }
    if (++oldest_ == stages_) oldest_ = 0;
  }

  int stages_, lane_;
  unsigned char* memory_;
  u64* landed_;
  const unsigned char* source_;
  i64 step_;
  int left_;
  int next_ = 0, oldest_ = 0;  // to be acquired, to be released
  u32 phase_ = 0;
};

}  // namespace deepres
