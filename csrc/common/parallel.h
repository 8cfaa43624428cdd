// Loops on torch's own thread pool.
//
// torch_parallel_for is a stable C function of torch >= 2.10. Python hands over its address when it
// loads the module, so nothing here links torch or OpenMP: a second thread pool would fight with
// torch's and can hang a forked worker. Without the address every loop runs in the calling thread,
// with the same results.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>

namespace rwm {

using ParallelBody = void (*)(std::int64_t begin, std::int64_t end, void* context);
using TorchParallelFor = std::int32_t (*)(std::int64_t begin, std::int64_t end, std::int64_t grain,
                                          ParallelBody, void* context);
using TorchGetNumThreads = std::int32_t (*)(std::uint32_t* count);

struct ThreadPool {
  TorchParallelFor run = nullptr;
  TorchGetNumThreads count = nullptr;
};

inline ThreadPool& thread_pool() {
  static ThreadPool pool;
  return pool;
}

inline std::int64_t num_threads() {
  std::uint32_t count = 1;
  if (thread_pool().count != nullptr) thread_pool().count(&count);
  return std::max<std::int64_t>(1, count);
}

// Calls f(begin, end) on pieces of [begin, end) of at least `grain` items. The pieces depend on the
// number of threads: for a sum that must not, use parallel_chunks. An exception in f reaches the
// caller after all pieces have ended.
template <class F>
void parallel_for(std::int64_t begin, std::int64_t end, std::int64_t grain, const F& f) {
  if (begin >= end) return;
  if (thread_pool().run == nullptr || end - begin <= grain) {
    f(begin, end);
    return;
  }
  struct Context {
    const F& f;
    std::atomic<bool> failed{false};
    std::exception_ptr error;
  } context{f};
  // Exceptions may not cross torch's frames, which are not ours: keep the first, rethrow it here.
  const auto body = [](std::int64_t b, std::int64_t e, void* p) {
    auto& c = *static_cast<Context*>(p);
    try {
      c.f(b, e);
    } catch (...) {
      if (!c.failed.exchange(true)) c.error = std::current_exception();
    }
  };
  const std::int32_t status =
      thread_pool().run(begin, end, std::max<std::int64_t>(1, grain), body, &context);
  if (context.error) std::rethrow_exception(context.error);
  if (status != 0) f(begin, end);  // the pool could not start: no piece has run
}

inline std::int64_t num_chunks(std::int64_t size, std::int64_t chunk) {
  return (size + chunk - 1) / chunk;
}

// Calls f(index, begin, end) for each chunk of `chunk` items of [0, size). Chunks do not depend on
// the number of threads, so per-chunk partial sums added up in index order are bitwise repeatable.
// `grain` counts chunks.
template <class F>
void parallel_chunks(std::int64_t size, std::int64_t chunk, const F& f, std::int64_t grain = 1) {
  parallel_for(0, num_chunks(size, chunk), grain, [&](std::int64_t first, std::int64_t last) {
    for (std::int64_t i = first; i < last; ++i) f(i, i * chunk, std::min(size, (i + 1) * chunk));
  });
}

}  // namespace rwm
