// The team of 16 rows: the warps of one block or, on sm_90 and newer, of a cluster of blocks that split the
// columns.
//
// A board is a piece of shared memory that all of the team write and then all read. In a cluster every block
// has a copy of it, and a post goes to all copies; the copy's barrier counts the bytes as they come, so that
// nobody waits for more than the data. Two boards in turn keep each other safe: who posts to one has read all
// of the other, see tile.cuh.
#pragma once

#include "config.cuh"

namespace deepres {

// The thread's place: kHeld rows of the batch, and columns that follow those of the warps before it, over all
// blocks of the team.
struct Lane {
  int warp, lane, group, part, row, column;

  DEEPRES_DEVICE Lane(int thread, i64 team)
      : warp(ptx::uniform(thread / 32)),
        lane(thread % 32),
        group(lane / 4),
        part((kCluster > 1 ? ptx::cluster_rank() * kWarps : 0) + warp),
        row(static_cast<int>(team) * kRows + (kSwapped ? lane % 4 * 2 : group)),
        column(part * 8 * kTiles + (kSwapped ? group : lane % 4) * kOwned) {}

  // Of the rows that the lane holds.
  DEEPRES_DEVICE int row_of(int h) const { return kSwapped ? row + h / 2 * 8 + h % 2 : row + 8 * h; }
  DEEPRES_DEVICE bool first() const { return warp == 0 && lane == 0; }
};

// What the block's member of a group has of a tensor, `elements` behind the member before it; null of null.
template <class T>
DEEPRES_DEVICE T* member_of(T* tensor, i64 elements) {
  return tensor == nullptr ? nullptr : tensor + ptx::block_index_y() * elements;
}

class Board {
 public:
  static constexpr int kBarrierBytes = 16;

  // bytes: what one block's copy receives before all may read it. first: true in one thread of the block.
  DEEPRES_DEVICE Board(u64* barrier, u32 bytes, bool first)
      : barrier_(barrier), bytes_(bytes), first_(first) {
    if (kCluster > 1 && first_) ptx::mbarrier_init(barrier, 1);
  }

  // Words to their place, `to` in this block's copy.
  template <int count>
  DEEPRES_DEVICE void post(void* to, const u32 (&words)[count]) {
    if constexpr (kCluster == 1) {
      store_words(to, words);
    } else {
      constexpr int kVector = count % 4 == 0 ? 4 : 2;
#pragma unroll
      for (int first = 0; first < count; first += kVector) {
        u32 vector[kVector];
#pragma unroll
        for (int i = 0; i < kVector; ++i) vector[i] = words[first + i];
#pragma unroll
        for (int rank = 0; rank < kCluster; ++rank)
          ptx::store_peer(static_cast<u32*>(to) + first, vector, barrier_, rank);
      }
    }
  }

  // Until everything of this turn is on the board.
  DEEPRES_DEVICE void wait() {
    if constexpr (kCluster == 1) {
      ptx::sync_threads();
    } else {
      if (first_) ptx::mbarrier_expect(barrier_, bytes_);
      ptx::mbarrier_wait_cluster(barrier_, phase_);
      phase_ ^= 1;
    }
  }

 private:
  u64* barrier_;
  u32 bytes_;
  bool first_;
  u32 phase_ = 0;
};

}  // namespace deepres
