// The one pool of worker threads outside LibTorch.
#pragma once

#include <cstddef>
#include <functional>
#include <memory>

namespace needle {

class ThreadPool {
 public:
  // `threads` counts the calling thread too: 1 starts no worker, 0 means one per core.
  explicit ThreadPool(std::size_t threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  std::size_t thread_count() const;

  // Calls body(begin, end) over disjoint chunks that cover [0, count), at least `grain` items a
  // chunk, and returns when all are done. The first exception is rethrown here. Chunk borders
  // depend only on count, grain and thread_count. Calls from several threads take turns; nested
  // calls run serially.
  void parallel_for(std::size_t count, std::size_t grain,
                    const std::function<void(std::size_t begin, std::size_t end)>& body);

  // Calls body(index, count) for every index below count = thread_count(), all at the same time:
  // they may wait for each other (core/spin_barrier). From within a call of either function:
  // body(0, 1). The body must not throw where others wait for it.
  void run_team(const std::function<void(std::size_t index, std::size_t count)>& body);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace needle
