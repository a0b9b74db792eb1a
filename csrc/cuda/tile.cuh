// A block's 16 rows in flight: who holds which elements, and what the computing warps do together.
//
// A warp owns 8 kTiles columns. The tensor cores hand lane 4 g + c two neighbouring columns of each 8-column
// tile on rows g and g + 8; the packed weights permute a warp's columns (pack.cuh) so that all the columns a
// lane gets are neighbours: kOwned of them from `column` on. What a row knows moves in vectors of 8 or 16
// bytes.
#pragma once

#include "ring.cuh"
#include "rows.cuh"

namespace deepres {

// --- The left operand of the products, [16, kWidth] in shared memory ---

// A layer's first stage of weights in a lane's registers, read in two halves, one for each wait; nothing
// where warps hide each other's waits.
class EarlyWeights {
  static_assert(!kEarly || kGroup == kTiles);

 public:
  u32 words[kEarly ? kStageSlabs : 1][kGroup][4] = {};

  // Without `wanted` anything: a load that is always made is waited for only where it is used.
  DEEPRES_DEVICE void load_half(Ring& ring, bool wanted) {
    if constexpr (kEarly) {
      from_ = ring.acquire(wanted);
      load<0, kStageSlabs / 2>();
    }
  }
  DEEPRES_DEVICE void load_rest() {
    if constexpr (kEarly) load<kStageSlabs / 2, kStageSlabs>();
  }

 private:
  template <int start, int stop>
  DEEPRES_DEVICE void load() {
#pragma unroll
    for (int slab = start; slab < stop; ++slab)
#pragma unroll
      for (int tile = 0; tile < kGroup; ++tile)
        load_words<4>(words[slab][tile], from_ + slab * kSlabBytes + 512 * tile);
  }

  const unsigned char* from_ = nullptr;
};

class LeftRows {
 public:
  // Rows lie 16 bytes further apart than they are long: the 8 rows of a load_matrices hit all 32 banks.
  static constexpr int kStride = kWidth * Operand::kBytes + 16;
  static constexpr int kBytes = kRows * kStride;

  DEEPRES_DEVICE LeftRows(unsigned char* memory, u64* barrier, const Lane& at)
      : memory_(memory), board_(barrier, kRows * kWidth * Operand::kBytes, at.first()) {}

  // A new tile in the rows' place; all must have read the old one.
  DEEPRES_DEVICE void post(const Tile& tile, const Lane& at) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      u32 words[kOwned * Operand::kBytes / 4];
      encode<Operand, kOwned>(tile[h], words);
      board_.post(memory_ + (at.group + 8 * h) * kStride + at.column * Operand::kBytes, words);
    }
  }
  // Until all have posted theirs.
  DEEPRES_DEVICE void wait() { board_.wait(); }

  // product [16, a lane's columns] = rows @ the layer whose first weights are `early`, packed as they are or
  // transposed. The ring's last stage is still to be refilled: `finish`.
  template <bool>
  DEEPRES_DEVICE void multiply(Tile& product, const EarlyWeights& early, Ring& ring, const Lane& at) const {
    float sums[kSets][kTiles][4] = {};
    // Matrices 0 and 1 of a step are rows 0-7 and 8-15 of its first 16 bytes, 2 and 3 of its last.
    const unsigned char* left = memory_ + (at.lane % 16) * kStride + 16 * (at.lane / 16);
    if constexpr (kEarly) {
#pragma unroll
      for (int slab = 0; slab < kStageSlabs; ++slab, left += 64)
        multiply_slab(sums, 0, left, early.words[slab]);
      if constexpr (kStages > 1) ring.release();
    }
#pragma unroll 1
    for (int stage = kEarly; stage < kStages; ++stage) {
      const unsigned char* weights = ring.acquire();
#pragma unroll
      for (int slab = 0; slab < kStageSlabs; ++slab, left += 64, weights += kSlabBytes)
#pragma unroll
        for (int first = 0; first < kTiles; first += kGroup) {
          u32 words[kGroup][4];
#pragma unroll
          for (int tile = 0; tile < kGroup; ++tile)
            load_words<4>(words[tile], weights + 512 * (first + tile));
          multiply_slab(sums, first, left, words);
        }
      ring.release();
    }
#pragma unroll
    for (int tile = 0; tile < kTiles; ++tile)
#pragma unroll
      for (int i = 0; i < 4; ++i)
        product[i / 2][2 * tile + i % 2] =
            kSets == 1 ? sums[0][tile][i] : sums[0][tile][i] + sums[kSets - 1][tile][i];
  }
  // After `multiply`, where there is time: a single stage is refilled here.
  static DEEPRES_DEVICE void finish(Ring& ring) {
    if constexpr (kEarly && kStages == 1) ring.release();
  }

 private:
  // A slab's two steps, kGroup tiles from `first` on.
  static DEEPRES_DEVICE void multiply_slab(float (&sums)[kSets][kTiles][4], int first,
                                           const unsigned char* left, const u32 (&right)[kGroup][4]) {
#pragma unroll
    for (int step = 0; step < 2; ++step) {
      u32 words[4];
      ptx::load_matrices(words, left + 32 * step);
      Operand::Left prepared;
      Operand::left(words, prepared);
#pragma unroll
      for (int tile = 0; tile < kGroup; ++tile)
        Operand::multiply(sums[step % kSets][first + tile], prepared, right[tile][2 * step],
                          right[tile][2 * step + 1]);
    }
  }

  unsigned char* memory_;
  Board board_;
};

// --- Two numbers of each row, from every warp to every warp ---

class RowPairs {
 public:
  // In floats; the 4 spare ones put the 8 rows that a warp reads at once into different banks.
  static constexpr int kStride = 2 * kParts + 4;
  static constexpr int kBytes = kRows * kStride * 4;
  static constexpr int kQuarter = kParts / 4;

  DEEPRES_DEVICE RowPairs(unsigned char* memory, u64* barrier, const Lane& at)
      : memory_(reinterpret_cast<float*>(memory)),
        board_(barrier, kRows * kParts * sizeof(Pair), at.first()) {}

  // This warp's pairs of rows g and g + 8, the same in all four lanes of a row.
  DEEPRES_DEVICE void post(const Pair (&pairs)[2], const Lane& at) {
    if (at.lane % 4 == 0) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        const u32 words[2] = {ptx::bits(pairs[h].first), ptx::bits(pairs[h].second)};
        board_.post(memory_ + (at.group + 8 * h) * kStride + 2 * at.part, words);
      }
    }
  }
  // Until all warps' are there.
  DEEPRES_DEVICE void wait() { board_.wait(); }
  // Of row g + 8 h: a quarter of the warps' pairs, another for each of the four lanes that share the row.
  DEEPRES_DEVICE void get(int h, Pair (&pairs)[kQuarter], const Lane& at) const {
    u32 words[2 * kQuarter];
    load_words<2 * kQuarter>(words, row(h, at) + 2 * kQuarter * (at.lane % 4));
#pragma unroll
    for (int part = 0; part < kQuarter; ++part)
      pairs[part] = {ptx::from_bits(words[2 * part]), ptx::from_bits(words[2 * part + 1])};
  }
  // The first number of the first warp's pair of row g + 8 h.
  DEEPRES_DEVICE float first(int h, const Lane& at) const { return *row(h, at); }

 private:
  DEEPRES_DEVICE const float* row(int h, const Lane& at) const {
    return memory_ + (at.group + 8 * h) * kStride;
  }

  float* memory_;
  Board board_;
};

// --- The shared memory of a chain kernel ---

// A layer exchanges pairs between its product and its new rows (without LayerNorm, as a mere barrier): the
// pairs of all are there only when all have read the left rows, and new rows only when all have read the
// pairs.
struct SharedMemory {
  static constexpr int kPerStage = kWarps * (kStageBytes + sizeof(u64));
  static constexpr int kFixed = LeftRows::kBytes + RowPairs::kBytes + 2 * sizeof(u64);

  unsigned char* fixed;  // behind the ring's stages
  u64* barriers;
  LeftRows left;
  RowPairs pairs;
  Ring ring;

  DEEPRES_DEVICE SharedMemory(unsigned char* memory, int stages, const unsigned char* packed, i64 step,
                              i64 layers, const Lane& at, bool)
      : fixed(memory + stages * kPerStage),
        barriers(reinterpret_cast<u64*>(fixed + LeftRows::kBytes + RowPairs::kBytes)),
        left(fixed, &barriers[0], at),
        pairs(fixed + LeftRows::kBytes, &barriers[1], at),
        ring(memory, stages, packed, step, layers, at) {
    if constexpr (kCluster > 1) ptx::sync_cluster();  // no post before its barrier stands
  }
};

}  // namespace deepres
