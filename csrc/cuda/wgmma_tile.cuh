// A block's rows in flight where warpgroups multiply: weights @ rows, the operands swapped, for a warpgroup's
// product is 64 high and a team has 16 or 32 rows.
//
// A block is a warpgroup and owns 64 columns. Both operands are read from shared memory: the weights where a
// copy has left them, whichever way the product goes, for a may be read along either dimension; the rows
// transposed, with those of the batch side by side. The tensor cores hand lane 4 g + c of a warp products g
// and g + 8 of its 16, for rows 2 c and 2 c + 1 of each 8. Weights and rows count the columns of a warp in
// the order 0, 2, .. 14, 1, 3, .. 15, so that a lane's two are neighbours.
#pragma once

#include "rows.cuh"
#include "wgmma_ptx.cuh"

namespace deepres {

static_assert(kColumns == 64 && kWidth <= 256 && Operand::kBytes == 2 && (kRows == 16 || kRows == 32));

constexpr int kCore = 128;             // bytes of a core matrix: 8 rows of 8 elements
constexpr int kSquare = 64 * kCore;    // bytes of 64 x 64 weights, packed [in / 8][out / 8][in % 8][out % 8]
constexpr int kSquares = kWidth / 64;  // of a block and layer

// A block's weights on their way from L2: a stage of shared memory is a layer, and each warp's first lane has
// a square of it copied.
class Ring {
 public:
  static constexpr int kBytes = kSquares * kSquare;  // of a stage

  // Starts the copies. memory: `stages` stages, 128-byte aligned, then their barriers, which stand for all
  // once the block's threads have met. packed: the first layer, [out / 64][in / 64] squares; the next layer's
  // lie `step` bytes on. transposed: the block's are of its 64 ins, summed over outs.
  DEEPRES_DEVICE Ring(unsigned char* memory, int stages, const unsigned char* packed, i64 step, i64 layers,
                      const Lane& at, bool transposed)
      : stages_(stages),
        lane_(at.lane),
        leads_(kSquares == 4 || at.warp < kSquares),
        memory_(memory),
        to_(memory + at.warp * kSquare),
        landed_(reinterpret_cast<u64*>(memory + stages * kBytes)),
        source_(packed +
                (transposed ? at.warp * kSquares + at.part / 4 : at.part / 4 * kSquares + at.warp) * kSquare),
        step_(step),
        left_(static_cast<int>(layers)) {
    if (at.first()) {
      for (int stage = 0; stage < stages; ++stage) ptx::mbarrier_init(&landed_[stage], kSquares);
      ptx::fence_mbarrier_init();
    }
    ptx::sync_threads();
    for (int stage = 1; stage < stages; ++stage) refill();
  }

  // The next layer's, once they are there.
  DEEPRES_DEVICE const unsigned char* acquire() {
    const unsigned char* stage = memory_ + next_ * kBytes;
    ptx::mbarrier_wait(&landed_[next_], phase_);
    if (++next_ == stages_) next_ = 0, phase_ ^= 1;
    return stage;
  }
  // The copy of one layer more may start: the layer before the one that this warp has multiplied last, if
  // there was one, all have. So a stage is left free at first.
  DEEPRES_DEVICE void refill() {
    if (leads_ && left_ > 0)
      ptx::copy_square(to_ + filled_ * kBytes, source_, kSquare, &landed_[filled_], lane_);
    --left_;
    source_ += step_;
    if (++filled_ == stages_) filled_ = 0;
  }

 private:
  int stages_, lane_;
  bool leads_;
  unsigned char *memory_, *to_;
  u64* landed_;
  const unsigned char* source_;
  i64 step_;
  int left_;
  int next_ = 0, filled_ = 0;  // to be acquired, to be filled
  u32 phase_ = 0;
};

// Where a layer's weights are: products read them there, but that they are there is found out early.
class EarlyWeights {
 public:
  const unsigned char* stage = nullptr;

  DEEPRES_DEVICE void load_half(Ring& ring, bool wanted) {
    if (wanted) stage = ring.acquire();
  }
  DEEPRES_DEVICE void load_rest() {}
};

// The rows in shared memory, [kWidth / 8][kRows / 8] core matrices whose rows are 8 rows of the batch in one
// column.
class LeftRows {
 public:
  // Apart by more than they are long: the 8 vectors that lanes store together hit all 32 banks.
  static constexpr int kApart = kCore + 32;
  static constexpr int kAlong = kRows / 8 * kApart;  // to the next 8 columns
  static constexpr int kBytes = kWidth / 8 * kAlong;

  DEEPRES_DEVICE LeftRows(unsigned char* memory, u64* barrier, const Lane& at)
      : memory_(memory), board_(barrier, kRows * kWidth * 2, at.first()) {}

  // New rows in the old ones' place; all must have multiplied those.
  DEEPRES_DEVICE void post(const Tile& tile, const Lane& at) {
    u32 words[kHeld];  // by core matrices: two rows of the lane's
#pragma unroll
    for (int i = 0; i < 2; ++i)
#pragma unroll
      for (int h = 0; h < kHeld; h += 2) {
        const float both[2] = {tile[h][i], tile[h + 1][i]};
        Operand::encode(both, words[(i * kHeld + h) / 2]);
      }
#pragma unroll
    for (int first = 0; first < kHeld; first += 4) {
      u32 vector[4];
      transpose(vector, &words[first], at);
      board_.post(memory_ + (at.part * kHeld + first + at.lane % 4) * kApart + at.group * 16, vector);
    }
  }
  // Until all have posted theirs.
  DEEPRES_DEVICE void wait() { board_.wait(); }

  // product [kRows, a lane's columns] = rows @ the layer's weights or, transposed, @ weights.T. The stage is
  // still to be refilled: `finish`.
  template <bool transposed>
  DEEPRES_DEVICE void multiply(Tile& product, const EarlyWeights& early, Ring&, const Lane&) const {
    constexpr u32 kIn = 8 * kCore, kOut = kCore;  // to the next 8 ins, or outs, of a square
    constexpr u32 kAlongSum = transposed ? kOut : kIn, kAcross = transposed ? kIn : kOut;
    float sums[2 * kHeld] = {};
    const u64 weights = ptx::describe(early.stage, kAlongSum, kAcross),
              rows = ptx::describe(memory_, kAlong, kApart);
    ptx::fence_stores(memory_, kBytes);
    ptx::wgmma_fence();
#pragma unroll
    for (int step = 0; step < kWidth / 16; ++step)
      add_product<!transposed>(sums, weights + (step / 4 * kSquare + step % 4 * 2 * kAlongSum) / 16,
                               rows + step * 2 * kAlong / 16, step > 0);
    ptx::wgmma_commit();
    ptx::wgmma_wait(sums);
#pragma unroll
    for (int h = 0; h < kHeld; ++h)
#pragma unroll
      for (int i = 0; i < 2; ++i) product[h][i] = sums[h / 2 * 4 + 2 * i + h % 2];
  }
  // After `multiply`, where there is time.
  static DEEPRES_DEVICE void finish(Ring& ring) { ring.refill(); }

 private:
  template <int major>
  static DEEPRES_DEVICE void add_product(float (&sums)[2 * kHeld], u64 weights, u64 rows, bool add) {
    if constexpr (DEEPRES_PRECISION == 116)
      ptx::wgmma_bf16<major, 1>(sums, weights, rows, add);
    else
      ptx::wgmma_f16<major, 1>(sums, weights, rows, add);
  }
  // Of four lanes that each have a word of four vectors, lane c receives vector c.
  static DEEPRES_DEVICE void transpose(u32 (&vector)[4], const u32* words, const Lane& at) {
    const bool upper = at.lane & 2, odd = at.lane & 1;
    u32 pairs[2][2];  // of vectors 2 upper and 2 upper + 1, words (c & 1) and (c & 1) + 2
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 kept = upper ? words[2 + i] : words[i], given = upper ? words[i] : words[2 + i];
      const u32 other = exchanged(given, 2);
      pairs[i][0] = upper ? other : kept, pairs[i][1] = upper ? kept : other;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const u32 kept = odd ? pairs[1][i] : pairs[0][i], given = odd ? pairs[0][i] : pairs[1][i];
      const u32 other = exchanged(given, 1);
      vector[2 * i] = odd ? other : kept, vector[2 * i + 1] = odd ? kept : other;
    }
  }
  static DEEPRES_DEVICE u32 exchanged(u32 word, int mask) {
    return ptx::bits(ptx::shuffle_xor(ptx::from_bits(word), mask));
  }

  unsigned char* memory_;
  Board board_;
};

// Two numbers of each row, from every warp to every warp.
class RowPairs {
 public:
  // In floats; the 4 spare ones put the rows that lanes read together into different banks.
  static constexpr int kStride = 2 * kParts + 4;
  static constexpr int kBytes = kRows * kStride * 4;
  static constexpr int kSharers = 32 / kRows;  // lanes that read a row's pairs: lane / kSharers is the row
  static constexpr int kShares = kParts / kSharers;  // pairs that each reads

  DEEPRES_DEVICE RowPairs(unsigned char* memory, u64* barrier, const Lane& at)
      : memory_(reinterpret_cast<float*>(memory)),
        board_(barrier, kRows * kParts * sizeof(Pair), at.first()) {}

  // This warp's pair of a team's row.
  DEEPRES_DEVICE void post(int row, const Pair& pair, const Lane& at) {
    const u32 words[2] = {ptx::bits(pair.first), ptx::bits(pair.second)};
    board_.post(memory_ + row * kStride + 2 * at.part, words);
  }
  // Until all warps' are there.
  DEEPRES_DEVICE void wait() { board_.wait(); }
  DEEPRES_DEVICE void get(Pair (&pairs)[kShares], const Lane& at) const {
    u32 words[2 * kShares];
    load_words<2 * kShares>(words, row(at) + 2 * kShares * (at.lane % kSharers));
#pragma unroll
    for (int part = 0; part < kShares; ++part)
      pairs[part] = {ptx::from_bits(words[2 * part]), ptx::from_bits(words[2 * part + 1])};
  }
  // The first number of the first warp's pair.
  DEEPRES_DEVICE float first(const Lane& at) const { return *row(at); }

 private:
  DEEPRES_DEVICE const float* row(const Lane& at) const { return memory_ + at.lane / kSharers * kStride; }

  float* memory_;
  Board board_;
};

// A layer exchanges pairs between its product and its new rows, as in tile.cuh: when all pairs are there, all
// have multiplied, so new rows may come; and a layer later the stage may.
struct SharedMemory {
  static constexpr int kPerStage = Ring::kBytes + 16;  // what follows is aligned to 16 bytes
  static constexpr int kFixed = LeftRows::kBytes + RowPairs::kBytes + 2 * sizeof(u64);

  unsigned char* fixed;  // behind the ring's stages
  u64* barriers;
  LeftRows left;
  RowPairs pairs;
  Ring ring;

  DEEPRES_DEVICE SharedMemory(unsigned char* memory, int stages, const unsigned char* packed, i64 step,
                              i64 layers, const Lane& at, bool transposed)
      : fixed(memory + stages * kPerStage),
        barriers(reinterpret_cast<u64*>(fixed + LeftRows::kBytes + RowPairs::kBytes)),
        left(fixed, &barriers[0], at),
        pairs(fixed + LeftRows::kBytes, &barriers[1], at),
        ring(memory, stages, packed, step, layers, at, transposed) {
    if constexpr (kCluster > 1) ptx::sync_cluster();  // no post before its barrier stands
  }
};

}  // namespace deepres
