// CUDA kernels on the CPU, for tests: common/cuda.cuh includes this header wherever nvcc does not
// compile the file. Every CUDA thread is a ucontext fibre in one OS thread, blocks run one after
// another. What CUDA leaves open is drawn from a seed: the order of blocks, warps and lanes. So a
// missing barrier shows up as a wrong number for most seeds, and a sanitizer sees every access.
//
//   shared memory    is 0xFF at the start of each block: NaN in every floating type
//   __syncthreads    aborts with a message when the block's threads wait at different places or
//                    some have returned
//   warp functions   take part with all 32 lanes, or abort likewise
//
// Not modelled: concurrency of blocks, the memory model (fences), tensor cores, asynchronous
// copies.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

struct alignas(8) uint2 {
  unsigned x, y;
};

struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using std::max;
using std::min;

namespace rwm::on_cpu {

constexpr unsigned kWarp = 32, kMaxThreads = 1024;
constexpr std::size_t kStackBytes = 128 * 1024, kMaxShared = 48 * 1024;
#if defined(__SANITIZE_ADDRESS__)
constexpr std::size_t kCanary = 0;
#else
constexpr std::size_t kCanary = 64;
#endif
constexpr int kPoison = 0xFF, kCanaryByte = 0xA5;

[[noreturn]] inline void fail(const char* what, const char* detail = "") {
  std::fprintf(stderr, "cuda_on_cpu: %s%s\n", what, detail);
  std::abort();
}

enum class State { ready, warp_barrier, block_barrier, returned };

// A place to come back to. ucontext makes it; later switches go through setjmp, which needs no
// system call and is fifty times faster. The sanitizers understand swapcontext only.
struct Context {
  ucontext_t made;
  jmp_buf place;
  bool left = false;  // `place` is set

  void go_to(Context& other) {
#if defined(__SANITIZE_ADDRESS__)
    swapcontext(&made, &other.made);
#else
    left = true;
    if (_setjmp(place) != 0) return;
    if (other.left) _longjmp(other.place, 1);
    setcontext(&other.made);
#endif
  }
};

struct Fibre {
  Context context;
  dim3 thread;
  unsigned index = 0;
  State state = State::ready;
  const char* site = "";  // where it waits, "file:line"
  void* sanitizer_stack = nullptr;
};

struct Counts {  // what ran since the last reset; tests assert that a path was taken
  std::int64_t launches = 0, blocks = 0, block_barriers = 0, warp_barriers = 0;
};

struct SharedObject {
  void* address;
  std::size_t bytes;
};

struct Machine {
  std::uint64_t seed = 0;  // 0: in index order, each warp as far as it can go; else random
  Counts counts;
  dim3 grid, block, block_index;
  Fibre* current = nullptr;
  unsigned char* dynamic_shared = nullptr;

  template <class F>
  void launch(dim3 grid_size, dim3 block_size, std::size_t shared_bytes, const F& kernel) {
    grid = grid_size;
    block = block_size;
    body_ = [](const void* f) { (*static_cast<const F*>(f))(); };
    body_context_ = &kernel;
    check_limits(shared_bytes);
    prepare_fibres();
    allocate_shared(shared_bytes);
    ++counts.launches;
    const std::int64_t blocks = std::int64_t{grid.x} * grid.y * grid.z;
    std::vector<std::int64_t> order(blocks);
    for (std::int64_t i = 0; i < blocks; ++i) order[i] = i;
    shuffle(order.data(), blocks);
    for (const std::int64_t i : order) {
      const std::int64_t row = i / grid.x;
      block_index = dim3(unsigned(i % grid.x), unsigned(row % grid.y), unsigned(row / grid.y));
      run_block();
    }
    dynamic_shared = nullptr;
  }

  void wait(State why, const char* site) {
    current->state = why;
    current->site = site;
    switch_to_scheduler();
  }

  // What every lane of the calling warp passes to a shuffle. Slots alternate: a lane that is
  // already at its next shuffle does not overwrite what a slower one still has to read.
  std::uint64_t* exchange_slots() {
    return exchange_[current->index / kWarp][exchange_turn(current->index)];
  }

  void add_shared(void* address, std::size_t bytes) {
    static_shared_.push_back({address, bytes});
    std::memset(address, kPoison, bytes);
  }

 private:
  using Body = void (*)(const void*);

  unsigned threads() const { return block.x * block.y * block.z; }

  void check_limits(std::size_t shared_bytes) const {
    if (threads() == 0 || threads() > kMaxThreads || block.z > 64) fail("invalid block size");
    if (threads() % kWarp != 0) fail("the block is not a multiple of a warp");
    if (grid.x == 0 || grid.y == 0 || grid.z == 0) fail("empty grid");
    if (grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) fail("the grid is too large");
    if (shared_bytes > kMaxShared) fail("more dynamic shared memory than 48 KiB");
  }

  void prepare_fibres() {
    const unsigned n = threads();
    while (fibres_.size() < n) {
      fibres_.push_back(std::make_unique<Fibre>());
      stacks_.emplace_back(
          new unsigned char[kStackBytes]);  // not initialised: pages come when touched
      Fibre& fibre = *fibres_.back();
      ucontext_t& made = fibre.context.made;
      getcontext(&made);
      made.uc_stack.ss_sp = stacks_.back().get();
      made.uc_stack.ss_size = kStackBytes;
      made.uc_link = nullptr;
      makecontext(&made, &Machine::fibre_main, 0);
    }
    for (unsigned i = 0; i < n; ++i) {
      fibres_[i]->index = i;
      fibres_[i]->thread = dim3(i % block.x, i / block.x % block.y, i / block.x / block.y);
    }
  }

  // The exact size from the heap, so that a sanitizer sees what lies beyond; else a canary sees it.
  void allocate_shared(std::size_t bytes) {
    void* block = nullptr;
    if (posix_memalign(&block, 16, bytes + kCanary) != 0) fail("out of memory");
    shared_block_.reset(static_cast<unsigned char*>(block));
    dynamic_shared = shared_block_.get();
    shared_bytes_ = bytes;
  }

  void run_block() {
    const unsigned n = threads(), warps = n / kWarp;
    ++counts.blocks;
    poison_shared();
    for (unsigned i = 0; i < n; ++i) fibres_[i]->state = State::ready;
    std::fill(exchange_count_, exchange_count_ + n, 0u);
    for (;;) {
      const unsigned warp = pick_warp(warps);
      if (warp < warps) {
        run_warp(warp);
      } else if (!release_block(n)) {
        break;
      }
    }
    check_shared();
  }

  // A warp with a lane that can run, or `warps`.
  unsigned pick_warp(unsigned warps) {
    const unsigned first = seed == 0 ? 0 : unsigned(random() % warps);
    for (unsigned k = 0; k < warps; ++k) {
      const unsigned warp = (first + k) % warps;
      for (unsigned lane = 0; lane < kWarp; ++lane) {
        if (fibres_[warp * kWarp + lane]->state == State::ready) return warp;
      }
    }
    return warps;
  }

  // Every lane up to its next barrier; then the warp barrier opens if the whole warp is there.
  void run_warp(unsigned warp) {
    unsigned order[kWarp];
    for (unsigned i = 0; i < kWarp; ++i) order[i] = i;
    shuffle(order, kWarp);
    for (const unsigned lane : order) {
      Fibre& fibre = *fibres_[warp * kWarp + lane];
      if (fibre.state == State::ready) switch_to(fibre);
    }
    unsigned waiting = 0;
    const char* site = nullptr;
    for (unsigned lane = 0; lane < kWarp; ++lane) {
      const Fibre& fibre = *fibres_[warp * kWarp + lane];
      if (fibre.state != State::warp_barrier) continue;
      if (site != nullptr && std::strcmp(site, fibre.site) != 0)
        fail("divergent warp function at ", fibre.site);
      site = fibre.site;
      ++waiting;
    }
    if (waiting == 0) return;
    if (waiting != kWarp) fail("a warp function without all 32 lanes (deadlock) at ", site);
    for (unsigned lane = 0; lane < kWarp; ++lane)
      fibres_[warp * kWarp + lane]->state = State::ready;
    ++counts.warp_barriers;
  }

  // Opens the block barrier; false when all threads have returned.
  bool release_block(unsigned n) {
    unsigned waiting = 0;
    const char* site = nullptr;
    for (unsigned i = 0; i < n; ++i) {
      const Fibre& fibre = *fibres_[i];
      if (fibre.state != State::block_barrier) continue;
      if (site != nullptr && std::strcmp(site, fibre.site) != 0)
        fail("divergent __syncthreads at ", fibre.site);
      site = fibre.site;
      ++waiting;
    }
    if (waiting == 0) return false;
    if (waiting != n) fail("divergent __syncthreads, some threads have returned, at ", site);
    for (unsigned i = 0; i < n; ++i) fibres_[i]->state = State::ready;
    ++counts.block_barriers;
    return true;
  }

  void poison_shared() {
    for (const SharedObject& object : static_shared_)
      std::memset(object.address, kPoison, object.bytes);
    std::memset(dynamic_shared, kPoison, shared_bytes_);
    std::memset(dynamic_shared + shared_bytes_, kCanaryByte, kCanary);
  }

  void check_shared() const {
    for (std::size_t i = 0; i < kCanary; ++i) {
      if (dynamic_shared[shared_bytes_ + i] != kCanaryByte) fail("write past the shared memory");
    }
  }

  unsigned exchange_turn(unsigned index) { return exchange_count_[index]++ % 2; }

  std::uint64_t random() {  // splitmix64
    std::uint64_t z = (random_state_ += 0x9E3779B97F4A7C15ull) + seed;
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }

  template <class T, class Size>
  void shuffle(T* items, Size size) {
    if (seed == 0) return;
    for (Size i = size; i > 1; --i)
      std::swap(items[i - 1], items[Size(random() % std::uint64_t(i))]);
  }

  static void fibre_main();

  void switch_to(Fibre& fibre) {
    current = &fibre;
#if defined(__SANITIZE_ADDRESS__)
    void* saved = nullptr;
    __sanitizer_start_switch_fiber(&saved, fibre.context.made.uc_stack.ss_sp, kStackBytes);
    scheduler_.go_to(fibre.context);
    __sanitizer_finish_switch_fiber(saved, nullptr, nullptr);
#else
    scheduler_.go_to(fibre.context);
#endif
  }

  void switch_to_scheduler() {
    Fibre& fibre = *current;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(&fibre.sanitizer_stack, scheduler_stack_, scheduler_bytes_);
    fibre.context.go_to(scheduler_);
    __sanitizer_finish_switch_fiber(fibre.sanitizer_stack, &scheduler_stack_, &scheduler_bytes_);
#else
    fibre.context.go_to(scheduler_);
#endif
  }

  struct Free {
    void operator()(unsigned char* p) const { std::free(p); }
  };

  Body body_ = nullptr;
  const void* body_context_ = nullptr;
  std::vector<std::unique_ptr<Fibre>> fibres_;
  std::vector<std::unique_ptr<unsigned char[]>> stacks_;
  std::vector<SharedObject> static_shared_;
  std::unique_ptr<unsigned char, Free> shared_block_;
  std::size_t shared_bytes_ = 0;
  std::uint64_t exchange_[kMaxThreads / kWarp][2][kWarp];
  unsigned exchange_count_[kMaxThreads];
  std::uint64_t random_state_ = 0;
  Context scheduler_;
  const void* scheduler_stack_ = nullptr;
  std::size_t scheduler_bytes_ = 0;
};

inline Machine& machine() {
  static Machine the_machine;
  return the_machine;
}

// A fibre lives as long as the process and runs the kernel of the day again and again.
inline void Machine::fibre_main() {
  Machine& m = machine();
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &m.scheduler_stack_, &m.scheduler_bytes_);
#endif
  for (;;) {
    m.body_(m.body_context_);
    m.current->state = State::returned;
    m.switch_to_scheduler();
  }
}

// The object of a RWM_SHARED declaration: known to the machine from its first use on.
struct Shared {
  Shared(void* address, std::size_t bytes) { machine().add_shared(address, bytes); }
};

template <class T>
T shuffle(const char* site, unsigned mask, T value, unsigned source_of_lane) {
  static_assert(sizeof(T) <= 8, "a shuffle moves up to 8 bytes");
  if (mask != 0xFFFFFFFFu) fail("a shuffle with a partial mask at ", site);
  Machine& m = machine();
  std::uint64_t* slots = m.exchange_slots();
  std::memcpy(&slots[m.current->index % kWarp], &value, sizeof(T));
  m.wait(State::warp_barrier, site);
  T result;
  std::memcpy(&result, &slots[source_of_lane % kWarp], sizeof(T));
  return result;
}

inline unsigned lane() { return machine().current->index % kWarp; }

template <class T>
T atomic_add(T* address, T value) {  // fibres change only at barriers
  const T old = *address;
  *address = old + value;
  return old;
}

}  // namespace rwm::on_cpu

#define RWM_QUOTE_(x) #x
#define RWM_QUOTE(x) RWM_QUOTE_(x)
#define RWM_SITE __FILE__ ":" RWM_QUOTE(__LINE__)

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__ __restrict

#define threadIdx (::rwm::on_cpu::machine().current->thread)
#define blockIdx (::rwm::on_cpu::machine().block_index)
#define blockDim (::rwm::on_cpu::machine().block)
#define gridDim (::rwm::on_cpu::machine().grid)

#define __syncthreads() ::rwm::on_cpu::machine().wait(::rwm::on_cpu::State::block_barrier, RWM_SITE)
#define __syncwarp() ::rwm::on_cpu::machine().wait(::rwm::on_cpu::State::warp_barrier, RWM_SITE)
#define __threadfence() ((void)0)
#define __umul64hi(a, b) std::uint64_t((static_cast<unsigned __int128>(a) * std::uint64_t(b)) >> 64)
#define __shfl_xor_sync(mask, value, with) \
  ::rwm::on_cpu::shuffle(RWM_SITE, mask, value, ::rwm::on_cpu::lane() ^ unsigned(with))
#define __shfl_down_sync(mask, value, by) \
  ::rwm::on_cpu::shuffle(RWM_SITE, mask, value, std::min(::rwm::on_cpu::lane() + unsigned(by), 31u))
#define atomicAdd(address, value) ::rwm::on_cpu::atomic_add(address, value)

// RWM_SHARED(float, sums, [32]); declares shared memory. Function-local, as in CUDA.
#define RWM_SHARED(type, name, extents) \
  static type name extents; \
  static const ::rwm::on_cpu::Shared name##_is_shared(&name, sizeof(name))
#define RWM_DYNAMIC_SHARED(type, name) \
  type* name = reinterpret_cast<type*>(::rwm::on_cpu::machine().dynamic_shared)
