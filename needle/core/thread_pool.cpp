#include "needle/core/thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include "needle/core/error.h"

namespace needle {
namespace {

thread_local bool inside_parallel_for = false;

// Looks at a condition for 0.2 to 0.5 ms, by the length of the CPU's pause, before the caller goes
// to sleep: parts of a job end some 0.1 ms apart, and to wake a thread takes as long, on a virtual
// machine longer. With 20 to 50 us, two threads read a prompt of 256 tokens 1.4 times as fast as
// one.
template <typename Condition>
void spin_until(Condition condition) {
  constexpr int kLooks = 10000;
  for (int look = 0; look < kLooks && !condition(); ++look) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }
}

}  // namespace

struct ThreadPool::Impl {
  explicit Impl(std::size_t threads) {
    workers.reserve(threads - 1);
    try {
      for (std::size_t i = 1; i < threads; ++i) {
        workers.emplace_back([this, i] { work(i); });
      }
    } catch (...) {
      stop();
      throw;
    }
  }
  ~Impl() { stop(); }
  Impl(const Impl&) = delete;
  Impl& operator=(const Impl&) = delete;

  using Body = std::function<void(std::size_t, std::size_t)>;

  struct Job {
    const Body* body = nullptr;
    std::size_t count = 0;
    std::size_t chunks = 0;
    bool team = false;  // chunk i is thread i's, the caller being thread 0
  };

  // Chunk i of n near-equal ones; the first `count % n` are one longer.
  static void run_chunk(const Job& job, std::size_t i) {
    const std::size_t size = job.count / job.chunks;
    const std::size_t longer = job.count % job.chunks;
    const std::size_t begin = i * size + std::min(i, longer);
    (*job.body)(begin, begin + size + (i < longer ? 1 : 0));
  }

  static void run_serially(const Job& job) {
    for (std::size_t i = 0; i < job.chunks; ++i) {
      run_chunk(job, i);
    }
  }

  void run_guarded(const Job& job, std::size_t chunk) {
    try {
      run_chunk(job, chunk);
    } catch (...) {
      next_chunk.store(job.chunks, std::memory_order_relaxed);
      const std::lock_guard lock(mutex);
      if (!failure) {
        failure = std::current_exception();
      }
    }
  }

  // A thread's share. Of a team its own chunk, so that what it has in its caches serves it again;
  // else chunks until none is left. After an exception the rest is skipped.
  void run_chunks(const Job& job, std::size_t thread) {
    inside_parallel_for = true;
    if (job.team) {
      run_guarded(job, thread);
    } else {
      for (;;) {
        const std::size_t i = next_chunk.fetch_add(1, std::memory_order_relaxed);
        if (i >= job.chunks) {
          break;
        }
        run_guarded(job, i);
      }
    }
    inside_parallel_for = false;
  }

  // Threads that look find a job, or that all are done, without the mutex; those that sleep say so
  // before they look for the last time, and whoever changes what they wait for looks for sleepers
  // after that. Both orders are sequentially consistent, so one of the two sees the other.
  void work(std::size_t thread) {
    std::uint64_t seen = 0;
    const auto changed = [&] { return generation.load() != seen || stopping.load(); };
    for (;;) {
      spin_until(changed);
      if (!changed()) {
        std::unique_lock lock(mutex);
        sleeping.fetch_add(1);
        wake.wait(lock, changed);
        sleeping.fetch_sub(1);
      }
      if (stopping.load()) {
        return;
      }
      ++seen;  // no generation is skipped: each ends when all workers have
      run_chunks(current, thread);
      if (busy.fetch_sub(1) == 1 && caller_sleeps.load()) {
        const std::lock_guard lock(mutex);
        idle.notify_one();
      }
    }
  }

  void wake_workers() {
    if (sleeping.load() > 0) {
      const std::lock_guard lock(mutex);
      wake.notify_all();
    }
  }

  void run(const Job& job) {
    const std::lock_guard turn(turns);
    current = job;
    next_chunk.store(0, std::memory_order_relaxed);
    busy.store(workers.size());
    generation.fetch_add(1);
    wake_workers();
    run_chunks(job, 0);
    const auto done = [&] { return busy.load() == 0; };
    spin_until(done);
    if (!done()) {
      std::unique_lock lock(mutex);
      caller_sleeps.store(true);
      idle.wait(lock, done);
      caller_sleeps.store(false);
    }
    if (failure) {
      std::rethrow_exception(std::exchange(failure, nullptr));
    }
  }

  void stop() {
    stopping.store(true);
    wake_workers();
    for (std::thread& worker : workers) {
      worker.join();
    }
    workers.clear();
  }

  std::vector<std::thread> workers;
  std::mutex turns;  // one parallel_for at a time
  std::mutex mutex;  // of those that go to sleep, and of the failure while a job runs
  std::condition_variable wake;
  std::condition_variable idle;
  Job current;  // written while no worker runs
  std::atomic<std::uint64_t> generation{0};
  std::atomic<std::size_t> busy{0};  // workers that have not finished this generation
  std::atomic<std::size_t> sleeping{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stopping{false};
  std::exception_ptr failure;
  std::atomic<std::size_t> next_chunk{0};
};

ThreadPool::ThreadPool(std::size_t threads)
    : impl_(std::make_unique<Impl>(
          threads > 0 ? threads : std::max<std::size_t>(1, std::thread::hardware_concurrency()))) {}

ThreadPool::~ThreadPool() = default;

std::size_t ThreadPool::thread_count() const { return impl_->workers.size() + 1; }

void ThreadPool::parallel_for(std::size_t count, std::size_t grain,
                              const std::function<void(std::size_t begin, std::size_t end)>& body) {
  if (count == 0) {
    return;
  }
  const std::size_t most = count / std::max<std::size_t>(grain, 1);
  const Impl::Job job{
      .body = &body, .count = count, .chunks = std::clamp<std::size_t>(most, 1, thread_count())};
  if (job.chunks == 1 || inside_parallel_for) {
    Impl::run_serially(job);
  } else {
    impl_->run(job);
  }
}

void ThreadPool::run_team(const std::function<void(std::size_t index, std::size_t count)>& body) {
  const std::size_t count = inside_parallel_for ? 1 : thread_count();
  if (count == 1) {
    body(0, 1);
    return;
  }
  // As many chunks as threads, one each.
  const auto chunk = [&body, count](std::size_t begin, std::size_t) { body(begin, count); };
  const Impl::Body whole = std::cref(chunk);
  impl_->run({.body = &whole, .count = count, .chunks = count, .team = true});
}

}  // namespace needle
