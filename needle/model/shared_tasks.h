// Work that threads take task by task: an equal share each would wait for the slowest, and the
// cores of a shared machine are seldom equally fast.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>

#include <ATen/Parallel.h>

namespace needle {

// Calls work(task) for each of 0 .. count - 1 on LibTorch's threads, in any order; inside another
// parallel region in the caller's thread alone. Tasks do not depend on each other. An exception of
// one reaches the caller; others may then be left out.
template <typename Work>
void share_tasks(std::int64_t count, const Work& work) {
  std::atomic<std::int64_t> next{0};
  const std::int64_t threads = std::min<std::int64_t>(count, at::get_num_threads());
  at::parallel_for(0, threads, 1, [&](std::int64_t, std::int64_t) {
    for (std::int64_t task = next++; task < count; task = next++) {
      work(task);
    }
  });
}

}  // namespace needle
