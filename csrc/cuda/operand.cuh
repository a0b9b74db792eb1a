// What the tensor cores multiply: the four precisions of `residual_stack`, each as a format and a product.
//
// A format says how a float is kept in memory (kBytes of it, `encode` and `decode` on words). An operand adds
// `left`, what a lane prepares once of its words of the left matrix, and `multiply`, d [16, 8] += left *
// right over one step: 32 bytes of a row of the left matrix, two words a lane of the right one. kGroup
// 8-column tiles of the right matrix are as many as registers hold at a time.
#pragma once

#include "ptx.cuh"

namespace deepres {

struct Float32 {
  static constexpr int kBytes = 4;
  static DEEPRES_DEVICE void encode(const float* values, u32& word) { word = ptx::bits(values[0]); }
  static DEEPRES_DEVICE void decode(u32 word, float* values) { values[0] = ptx::from_bits(word); }
};

struct Float16 {
  static constexpr int kBytes = 2;
  static DEEPRES_DEVICE void encode(const float* values, u32& word) {
    word = ptx::pack_f16(values[0], values[1]);
  }
  static DEEPRES_DEVICE void decode(u32 word, float* values) { ptx::unpack_f16(word, values[0], values[1]); }

  static constexpr int kGroup = 8;
  using Left = u32[4];
  static DEEPRES_DEVICE void left(const u32 (&words)[4], Left& prepared) {
    for (int i = 0; i < 4; ++i) prepared[i] = words[i];
  }
  static DEEPRES_DEVICE void multiply(float (&d)[4], const Left& a, u32 b0, u32 b1) {
    ptx::mma_f16(d, a, b0, b1);
  }
};

struct Bfloat16 {
  static constexpr int kBytes = 2;
  static DEEPRES_DEVICE void encode(const float* values, u32& word) {
    word = ptx::pack_bf16(values[0], values[1]);
  }

  static constexpr int kGroup = 8;
  using Left = u32[4];
  static DEEPRES_DEVICE void left(const u32 (&words)[4], Left& prepared) {
    for (int i = 0; i < 4; ++i) prepared[i] = words[i];
  }
  static DEEPRES_DEVICE void multiply(float (&d)[4], const Left& a, u32 b0, u32 b1) {
    ptx::mma_bf16(d, a, b0, b1);
  }
};

// Rounded when stored, so that the inner loop has nothing left to do.
struct Tfloat32 {
  static constexpr int kBytes = 4;
  static DEEPRES_DEVICE void encode(const float* values, u32& word) { word = ptx::round_tf32(values[0]); }

  static constexpr int kGroup = 8;
  using Left = u32[4];
  static DEEPRES_DEVICE void left(const u32 (&words)[4], Left& prepared) {
    for (int i = 0; i < 4; ++i) prepared[i] = words[i];
  }
  static DEEPRES_DEVICE void multiply(float (&d)[4], const Left& a, u32 b0, u32 b1) {
    ptx::mma_tf32(d, a, b0, b1);
  }
};

// fp32 as three products of tf32: x = high + low to 21 bits, and low * low is below what fp32 keeps.
struct SplitFloat32 : Float32 {
  static constexpr int kGroup = 4;
  struct Left {
    u32 high[4], low[4];
  };
  static DEEPRES_DEVICE void split(u32 word, u32& high, u32& low) {
    high = ptx::round_tf32(ptx::from_bits(word));
    low = ptx::round_tf32(ptx::from_bits(word) - ptx::from_bits(high));
  }
  static DEEPRES_DEVICE void left(const u32 (&words)[4], Left& prepared) {
    for (int i = 0; i < 4; ++i) split(words[i], prepared.high[i], prepared.low[i]);
  }
  // Tensor cores truncate as they add: the long sum stays outside, in fp32 additions that round to nearest.
  static DEEPRES_DEVICE void multiply(float (&d)[4], const Left& a, u32 b0, u32 b1) {
    u32 high0, low0, high1, low1;
    split(b0, high0, low0);
    split(b1, high1, low1);
    float step[4] = {0, 0, 0, 0};
    ptx::mma_tf32(step, a.low, high0, high1);
    ptx::mma_tf32(step, a.high, low0, low1);
    ptx::mma_tf32(step, a.high, high0, high1);
    for (int i = 0; i < 4; ++i) d[i] += step[i];
  }
};

// `count` floats in `Format`, to or from consecutive words of registers.
template <class Format, int count>
DEEPRES_DEVICE void encode(const float (&values)[count], u32 (&words)[count * Format::kBytes / 4]) {
#pragma unroll
  for (int i = 0; i < count * Format::kBytes / 4; ++i)
    Format::encode(&values[i * 4 / Format::kBytes], words[i]);
}
template <class Format, int count>
DEEPRES_DEVICE void decode(const u32 (&words)[count * Format::kBytes / 4], float (&values)[count]) {
#pragma unroll
  for (int i = 0; i < count * Format::kBytes / 4; ++i)
    Format::decode(words[i], &values[i * 4 / Format::kBytes]);
}

// Words between registers and memory, 16 bytes at a time where there are as many.
struct alignas(16) Words4 {
  u32 word[4];
};
struct alignas(8) Words2 {
  u32 word[2];
};
template <int count>
DEEPRES_DEVICE void store_words(void* to, const u32 (&words)[count]) {
  static_assert(count == 1 || count == 2 || count % 4 == 0, "a word, or vectors of 8 or 16 bytes");
  if constexpr (count == 1) {
    *static_cast<u32*>(to) = words[0];
  } else if constexpr (count == 2) {
    *static_cast<Words2*>(to) = Words2{{words[0], words[1]}};
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 4)
      static_cast<Words4*>(to)[i / 4] = Words4{{words[i], words[i + 1], words[i + 2], words[i + 3]}};
  }
}
template <int count>
DEEPRES_DEVICE void load_words(u32 (&words)[count], const void* from) {
  static_assert(count == 1 || count == 2 || count % 4 == 0, "a word, or vectors of 8 or 16 bytes");
  if constexpr (count == 1) {
    words[0] = *static_cast<const u32*>(from);
  } else if constexpr (count == 2) {
    const Words2 vector = *static_cast<const Words2*>(from);
    words[0] = vector.word[0], words[1] = vector.word[1];
  } else {
#pragma unroll
    for (int i = 0; i < count; i += 4) {
      const Words4 vector = static_cast<const Words4*>(from)[i / 4];
#pragma unroll
      for (int j = 0; j < 4; ++j) words[i + j] = vector.word[j];
    }
  }
}

}  // namespace deepres
