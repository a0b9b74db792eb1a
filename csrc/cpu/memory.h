// Memory that the next call takes over from the last one: fresh pages cost as much as the arithmetic they
// hold.

#pragma once

#include <cstddef>

namespace deepres {

// A buffer on a cache line boundary, uninitialised. It goes back to a pool of at most pooled_bytes() when it
// dies.
class Memory {
 public:
  static size_t pooled_bytes();          // 4 GiB, or less by limit_pool
  static void limit_pool(size_t bytes);  // keeps no more than these from now on

  explicit Memory(size_t bytes);  // throws std::bad_alloc
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  static void poison(bool on);  // for tests: every buffer starts as NaN
  static void release();        // gives the pool back to the system

 private:
  void* data_;
  size_t bytes_;
};

}  // namespace deepres
