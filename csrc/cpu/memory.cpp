#include "cpu/memory.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <list>
#include <mutex>
#include <new>

namespace deepres {
namespace {

struct Free {
  void* data;
  size_t bytes;
};

struct Pool {
  std::mutex mutex;
  std::list<Free> buffers;  // the most recently used first
  size_t total = 0;

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

}  // namespace

Memory::Memory(size_t bytes) : bytes_((bytes + 63) / 64 * 64 + 64) {
  data_ = taken(bytes_);
  if (!data_) data_ = std::aligned_alloc(64, bytes_);
  if (!data_) {
    release();
    data_ = std::aligned_alloc(64, bytes_);
  }
  if (!data_) throw std::bad_alloc();
  if (poisoned) std::memset(data_, 0xff, bytes_);
}

Memory::~Memory() {
  Pool& to = pool();
  const std::lock_guard<std::mutex> lock(to.mutex);
  to.buffers.push_front({data_, bytes_});
  to.total += bytes_;
  to.shrink_to(kPooledBytes);
}

void Memory::poison(bool on) { poisoned = on; }

void Memory::release() {
  Pool& all = pool();
  const std::lock_guard<std::mutex> lock(all.mutex);
  all.shrink_to(0);
}

}  // namespace deepres
