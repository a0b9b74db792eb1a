#include "cpu/memory.h"

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <new>

#if defined(__linux__)
#include <sys/mman.h>
#endif

namespace deepres {
namespace {

struct Free {
  void* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::list<Free> buffers;  // the most recently used first
  size_t total = 0, limit = size_t{4} << 30;

  void shrink_to(size_t bytes) {
    while (total > bytes) {
      std::free(buffers.back().data);
      total -= buffers.back().bytes;
      buffers.pop_back();
    }
  }
};

// Never destroyed: tensors may outlive static objects at the interpreter's exit.
Pool& pool() {
  static Pool* const one = new Pool;
  return *one;
}

std::atomic<bool> poisoned{false};

void* taken(size_t bytes) {
  Pool& from = pool();
  const std::lock_guard<std::mutex> lock(from.mutex);
  for (auto each = from.buffers.begin(); each != from.buffers.end(); ++each) {
    if (each->bytes != bytes) continue;
    void* data = each->data;
    from.total -= bytes;
    from.buffers.erase(each);
    return data;
  }
  return nullptr;
}

constexpr size_t kLine = 64, kHugePage = size_t{2} << 20;

// On huge pages where it pays: walking gigabytes in small ones misses the address cache at every other step.
void* allocated(size_t bytes) {
  const bool huge = bytes >= 2 * kHugePage;
  void* data = std::aligned_alloc(huge ? kHugePage : kLine, bytes);
#if defined(__linux__)
  if (huge && data) madvise(data, bytes, MADV_HUGEPAGE);
#endif
  return data;
}

size_t rounded(size_t bytes) {
  const size_t unit = bytes >= 2 * kHugePage ? kHugePage : kLine;
  return (bytes / unit + 1) * unit;
}

}  // namespace

Memory::Memory(size_t bytes) : bytes_(rounded(bytes)) {
  data_ = taken(bytes_);
  if (!data_) data_ = allocated(bytes_);
  if (!data_) {
    release();
    data_ = allocated(bytes_);
  }
  if (!data_) throw std::bad_alloc();
  if (poisoned) std::memset(data_, 0xff, bytes_);
}

Memory::~Memory() {
  Pool& to = pool();
  const std::lock_guard<std::mutex> lock(to.mutex);
  to.buffers.push_front({data_, bytes_});
  to.total += bytes_;
  to.shrink_to(to.limit);
}

size_t Memory::pooled_bytes() { return pool().limit; }

void Memory::limit_pool(size_t bytes) {
  Pool& one = pool();
  const std::lock_guard<std::mutex> lock(one.mutex);
  one.limit = std::min(one.limit, bytes);
  one.shrink_to(one.limit);
}

void Memory::poison(bool on) { poisoned = on; }

void Memory::release() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.shrink_to(0);
}

}  // namespace deepres
