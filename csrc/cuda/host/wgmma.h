// wgmma_ptx.cuh on a CPU. What goes wrong on a GPU goes wrong here: the tensor cores see shared memory as
// copies have left it and as of the last fence (`Cluster::seen`); d is NaN until the wait; products that no
// fence precedes, or whose descriptor names another layout, give NaN. They are made at once or only at the
// wait, as the schedule is.
#pragma once

#include "ptx.h"

namespace deepres::ptx {

inline u32 shared_address(const void* place) {
  return static_cast<u32>(static_cast<const unsigned char*>(place) - Cluster::current()->shared());
}

inline void copy_square(void* to, const void* from, u32 bytes, u64* barrier, int lane) {
  sync_warp();
  copy_stage(to, from, bytes, barrier, lane);
}
inline void fence_stores(const void* memory, int bytes) {
  std::memcpy(Cluster::current()->seen(memory), memory, bytes);
}
inline void wgmma_fence() {
  sync_warp();
  Cluster::current()->fiber().fenced = true;
}
inline void wgmma_commit() {
  for (host::Product& product : Cluster::current()->fiber().products) product.committed = true;
}

// Element (major, k) of an operand: `major` counts rows of a or columns of b.
struct WgmmaOperand {
  const unsigned char* seen;
  u64 described;
  int major;

  bool understood() const { return (described >> 62) == 0 && (described >> 49 & 7) == 0; }
  u16 at(int row, int k) const {
    const u64 start = (described & 0x3fff) << 4;
    const u64 leading = (described >> 16 & 0x3fff) << 4, stride = (described >> 32 & 0x3fff) << 4;
    const u64 within = major ? row % 8 * 2 + k % 8 * 16 : row % 8 * 16 + k % 8 * 2;
    u16 half;
    std::memcpy(&half, seen + start + row / 8 * stride + k / 8 * leading + within, 2);
    return half;
  }
};

// One product of a warp's 32 lanes, into `value` of each.
inline void make_product(host::Product** lanes, int warp, const unsigned char* seen) {
  const host::Product& one = *lanes[0];
  const WgmmaOperand a{seen, one.a, one.major_a}, b{seen, one.b, one.major_b};
  bool sound = one.fenced && a.understood() && b.understood();
  for (int lane = 0; lane < host::kLanes; ++lane) sound &= lanes[lane]->a == one.a && lanes[lane]->b == one.b;
  for (int lane = 0; lane < host::kLanes; ++lane)
    for (int i = 0; i < one.count; ++i) {
      const int m = 16 * (warp % 4) + lane / 4 + i / 2 % 2 * 8, n = i / 4 * 8 + lane % 4 * 2 + i % 2;
      double sum = one.add ? static_cast<double>(lanes[lane]->value[i]) : 0.0;
      for (int k = 0; k < 16; ++k)
        sum += static_cast<double>(one.decode(a.at(m, k))) * one.decode(b.at(n, k));
      lanes[lane]->value[i] = sound ? static_cast<float>(sum) : std::nanf("");
    }
}

// All that the lanes of the warp have waiting, in order.
inline void make_products() {
  Cluster& cluster = *Cluster::current();
  const int warp = thread_index() / host::kLanes;
  const unsigned char* seen = cluster.seen(cluster.shared());
  collective(cluster.fiber(), [warp, seen](host::Fiber** lanes) {
    for (std::size_t next = 0; next < lanes[0]->products.size(); ++next) {
      if (lanes[0]->products[next].made) continue;
      host::Product* products[host::kLanes];
      for (int lane = 0; lane < host::kLanes; ++lane) {
        host::Product& own = lanes[lane]->products[next];
        if (next > 0) std::copy_n(lanes[lane]->products[next - 1].value, own.count, own.value);
        own.made = true;
        products[lane] = &own;
      }
      make_product(products, warp, seen);
    }
  });
}

template <int count>
void start_product(float (&d)[count], host::Product product) {
  host::Fiber& fiber = Cluster::current()->fiber();
  product.count = count;
  product.fenced = fiber.fenced;
  if (fiber.products.empty()) std::memcpy(product.value, d, sizeof d);
  fiber.products.push_back(product);
  for (float& element : d) element = std::nanf("");
  if (Cluster::current()->eager()) make_products();
}
template <int major_a, int major_b, int count>
void wgmma_bf16(float (&d)[count], u64 a, u64 b, bool add) {
  start_product(d, {a, b, major_a, major_b, add, from_bf16});
}
template <int major_a, int major_b, int count>
void wgmma_f16(float (&d)[count], u64 a, u64 b, bool add) {
  start_product(d, {a, b, major_a, major_b, add, from_f16});
}

template <int count>
void wgmma_wait(float (&d)[count]) {
  host::Fiber& fiber = Cluster::current()->fiber();
  make_products();
  if (!fiber.products.empty() && fiber.products.back().committed)
    std::memcpy(d, fiber.products.back().value, sizeof d);
  fiber.products.clear();
  fiber.fenced = false;
}

}  // namespace deepres::ptx
