// Where threads that work on one thing together wait for each other.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <thread>

namespace needle {

// For some microseconds of waiting: a thread looks again and again, and gives its core away only
// after that, so that it also works with more threads than cores. Each thread counts its rounds in
// a cache line of its own that the others read: between two cores that is one transfer a round.
class SpinBarrier {
 public:
  explicit SpinBarrier(std::size_t threads)
      : threads_(threads), rounds_(std::make_unique<Round[]>(threads)) {}

  // Returns when all threads have called it, each with its own index below the count. What they
  // wrote before is seen by all after. False if that took so long that the core was given away:
  // another thread sleeps or is held up. Does not allocate.
  bool wait(std::size_t thread) noexcept {
    const std::uint32_t round = rounds_[thread].number.load(std::memory_order_relaxed) + 1;
    rounds_[thread].number.store(round, std::memory_order_release);
    bool prompt = true;
    for (std::size_t other = 0; other < threads_; ++other) {
      int looks = 0;
      while (static_cast<std::int32_t>(rounds_[other].number.load(std::memory_order_acquire) -
                                       round) < 0) {
        prompt = wait_a_little(looks++) && prompt;
      }
    }
    return prompt;
  }

 private:
  static constexpr int kEagerLooks = 256;  // a tenth of a microsecond: one pause can take as long
  static constexpr int kLooks = 1200;      // 20 to 50 us

  struct alignas(64) Round {
    std::atomic<std::uint32_t> number{0};
  };

  static bool wait_a_little(int looks) noexcept {
    if (looks >= kLooks) {
      std::this_thread::yield();
      return false;
    }
    if (looks >= kEagerLooks) {
#if defined(__x86_64__) || defined(__i386__)
      __builtin_ia32_pause();
#elif defined(__aarch64__)
      asm volatile("yield");
#endif
    }
    return true;
  }

  const std::size_t threads_;
  const std::unique_ptr<Round[]> rounds_;
};

}  // namespace needle
