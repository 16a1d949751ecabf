// Where threads that work on one thing together wait for each other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <thread>

namespace needle {

// For some microseconds of waiting: a thread looks again and again, and gives its core away only
// after that, so that it also works with more threads than cores.
class SpinBarrier {
 public:
  explicit SpinBarrier(std::size_t threads) : threads_(threads) {}

  // Returns when all threads have called it. What they wrote before is seen by all after. False if
  // that took so long that the core was given away: another thread sleeps or is held up.
  bool wait() noexcept {
    if (threads_ == 1) {
      return true;
    }
    const std::uint32_t round = round_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == threads_) {
      arrived_.store(0, std::memory_order_relaxed);
      round_.store(round + 1, std::memory_order_release);
      return true;
    }
    bool prompt = true;
    for (int look = 0; round_.load(std::memory_order_acquire) == round; ++look) {
      if (look < kLooks) {
        pause();
      } else {
        std::this_thread::yield();
        prompt = false;
      }
    }
    return prompt;
  }

 private:
  static constexpr int kLooks = 1000;  // about 20 us

  static void pause() noexcept {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
  }

  const std::size_t threads_;
  alignas(64) std::atomic<std::size_t> arrived_{0};
  alignas(64) std::atomic<std::uint32_t> round_{0};
};

}  // namespace needle
