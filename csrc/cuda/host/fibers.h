// The threads of a cluster of blocks as fibers of one CPU thread, so that a kernel runs, and can be watched,
// without a GPU.
//
// A fiber runs until it waits: for the other lanes of its warp, for a barrier, for a copy. The order in which
// fibers run and in which copies land is the schedule's: kernels must give the same bits under all of them.
#pragma once

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace deepres::host {

constexpr int kLanes = 32;
constexpr std::size_t kStack = 256 * 1024;

#if defined(__x86_64__)
// Saves the registers that a call preserves, and goes on where `to` saved its own; no system call, unlike
// swapcontext.
using Context = void*;
extern "C" void deepres_switch(Context* from, Context to);
asm(R"(
.text
.p2align 4
.hidden deepres_switch
.globl deepres_switch
deepres_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
inline void start_context(Context& context, char* stack, void (*entry)()) {
  void** top = reinterpret_cast<void**>(stack + kStack) - 3;  // 8 off 16 bytes, as a call leaves it
  *top = nullptr;
  *--top = reinterpret_cast<void*>(entry);
  for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
  context = top;
}
inline void switch_context(Context& from, Context& to) { deepres_switch(&from, to); }
#else
using Context = ucontext_t;
inline void start_context(Context& context, char* stack, void (*entry)()) {
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = kStack;
  makecontext(&context, entry, 0);
}
inline void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }
#endif

struct Copy {
  void* to;
  const void* from;  // null: `value`
  std::size_t bytes;
  std::function<void()> landed;
  unsigned char value[16] = {};
};

struct Warp {
  void* operands[kLanes];
  int arrived = 0;
  unsigned generation = 0;
};

struct Barrier {
  int arrived = 0;
  unsigned generation = 0;
};

// One warpgroup product of a lane (host/wgmma.h): what it was asked for, and its part of the result.
struct Product {
  u64 a, b;  // descriptors
  int major_a, major_b;
  bool add;
  float (*decode)(u16);
  int count = 0;
  bool fenced = false, committed = false, made = false;
  float value[16] = {};
};

struct Fiber {
  Context context;
  std::unique_ptr<char[]> stack{new char[kStack]};
  void* fake_stack = nullptr;
  int rank = 0, thread = 0;  // block in the cluster, thread in the block
  bool done = false;
  std::function<bool()> ready;            // empty: can run
  std::vector<std::vector<Copy>> groups;  // cp.async groups, the open one last
  std::vector<Product> products;          // that nobody has waited for
  bool fenced = false;                    // whether products may begin
};

// One cluster at a time; `current()` is the one whose threads run. An ordinary block is a cluster of one.
class Cluster {
 public:
  // Runs `body` in every thread. schedule 0: threads in order, copies as late as can be; others: threads
  // shuffled by that seed, some held back for long, copies at once where it is even, where it is odd after
  // all stores to other blocks. Returns false if all threads wait for each other.
  bool run(int blocks, int threads, std::size_t shared_bytes, unsigned schedule, std::function<void()> body) {
    body_ = std::move(body);
    schedule_ = schedule;
    random_.seed(schedule);
    threads_ = threads;
    blocks_.clear();
    for (int rank = 0; rank < blocks; ++rank) {
      blocks_.push_back({allocate(shared_bytes), allocate(shared_bytes), Barrier{}});
    }
    const int all = blocks * threads;
    warps_.assign(all / kLanes, Warp{});
    barrier_ = Barrier{};
    copies_.clear(), stores_.clear();
    while (static_cast<int>(fibers_.size()) < all) fibers_.push_back(std::make_unique<Fiber>());
    std::vector<Fiber*> order;
    for (int i = 0; i < all; ++i) {
      Fiber& fiber = *fibers_[i];
      fiber.rank = i / threads;
      fiber.thread = i % threads;
      fiber.done = false;
      fiber.ready = nullptr;
      fiber.groups.assign(1, {});
      fiber.products.clear();
      fiber.fenced = false;
      start_context(fiber.context, fiber.stack.get(), &Cluster::enter);
      order.push_back(&fiber);
    }
    current() = this;
    const int apart = blocks > 1 ? blocks : 0, units = apart + all / kLanes;
    // A block of several, or behind those a warp, that runs when nothing else can; `units`: none.
    int held = units;
    for (int left = all, pass = 0; left > 0; ++pass) {
      if (schedule_ != 0) {
        std::shuffle(order.begin(), order.end(), random_);
        if (pass % 64 == 0) held = static_cast<int>(random_() % (units + 1));
      }
      const auto is_held = [&](const Fiber& f) {
        return held < apart ? f.rank == held : (f.rank * threads + f.thread) / kLanes == held - apart;
      };
      int done = 0;
      bool ran = resume_all(order, [&](const Fiber& fiber) { return !is_held(fiber); }, done);
      if (!ran) ran = resume_all(order, is_held, done);
      left -= done;
      if (ran) continue;
      if (copies_.empty() && stores_.empty()) {
        std::fprintf(stderr, "deadlock: %d of %d threads wait and no copy is under way\n", left, all);
        return false;
      }
      std::deque<Copy>& first = schedule_ % 2 == 0 ? copies_ : stores_;
      std::deque<Copy>& next = !first.empty() ? first : schedule_ % 2 == 0 ? stores_ : copies_;
      for (int landed = 0; landed < 32 && !next.empty(); ++landed) {
        land(next.front());
        next.pop_front();
      }
    }
    return true;
  }

  static Cluster*& current() {
    static Cluster* cluster = nullptr;
    return cluster;
  }

  Fiber& fiber() { return *running_; }
  int threads() const { return threads_; }
  int blocks() const { return static_cast<int>(blocks_.size()); }
  unsigned char* shared() { return blocks_[running_->rank].shared.get(); }
  // Where the copy engine and warpgroup products find what lies at `place` in the running thread's block.
  unsigned char* seen(const void* place) {
    return blocks_[running_->rank].seen.get() + (static_cast<const unsigned char*>(place) - shared());
  }
  // Where block `rank` has what lies at `place` in the running thread's block.
  unsigned char* peer(void* place, int rank) {
    return blocks_[rank].shared.get() + (static_cast<unsigned char*>(place) - shared());
  }
  Warp& warp() { return warps_[(running_->rank * threads_ + running_->thread) / kLanes]; }
  Barrier& block_barrier() { return blocks_[running_->rank].barrier; }
  Barrier& cluster_barrier() { return barrier_; }
  bool eager() const { return schedule_ != 0 && schedule_ % 2 == 0; }

  // The running fiber waits until `ready()`.
  void wait(std::function<bool()> ready) {
    while (!ready()) {
      running_->ready = ready;
      suspend();
    }
  }

  void start(Copy copy) {
    if (eager())
      land(copy);
    else
      (copy.from ? copies_ : stores_).push_back(std::move(copy));
  }

  static void land(const Copy& copy) {
    std::memcpy(copy.to, copy.from ? copy.from : copy.value, copy.bytes);
    if (copy.landed) copy.landed();
  }

  i64 index = 0, index_y = 0, count = 1;

 private:
  struct Free {
    void operator()(unsigned char* memory) const { std::free(memory); }
  };

  using Memory = std::unique_ptr<unsigned char, Free>;

  static Memory allocate(std::size_t bytes) {
    void* memory = std::aligned_alloc(128, (bytes + 127) / 128 * 128);
    std::memset(memory, 0xff, bytes);  // NaN, whatever it is read as
    return Memory(static_cast<unsigned char*>(memory));
  }

  static void enter() {
    Cluster& cluster = *current();
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &cluster.main_stack_, &cluster.main_size_);
#endif
    cluster.body_();
    cluster.running_->done = true;
    cluster.suspend();
  }

  // Runs those of `order` that can and that `chosen` names; whether there were any.
  template <class Chosen>
  bool resume_all(const std::vector<Fiber*>& order, Chosen chosen, int& done) {
    bool ran = false;
    for (Fiber* fiber : order) {
      if (fiber->done || !chosen(*fiber) || (fiber->ready && !fiber->ready())) continue;
      fiber->ready = nullptr;
      ran = true;
      resume(*fiber);
      done += fiber->done;
    }
    return ran;
  }

  void resume(Fiber& fiber) {
    running_ = &fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack.get(), kStack);
#endif
    switch_context(main_, fiber.context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void suspend() {
    Fiber& fiber = *running_;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fiber.done ? nullptr : &fiber.fake_stack, main_stack_, main_size_);
#endif
    switch_context(fiber.context, main_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &main_stack_, &main_size_);
#endif
  }

  std::function<void()> body_;
  unsigned schedule_ = 0;
  std::mt19937 random_;
  struct Shared {
    Memory shared, seen;
    Barrier barrier;
  };
  std::vector<Shared> blocks_;
  std::vector<Warp> warps_;
  Barrier barrier_;
  std::deque<Copy> copies_, stores_;  // from memory, and of values to other blocks
  std::vector<std::unique_ptr<Fiber>> fibers_;
  Fiber* running_ = nullptr;
  int threads_ = 0;
  Context main_{};
  const void* main_stack_ = nullptr;
  std::size_t main_size_ = 0;
};

}  // namespace deepres::host
