// How many requests run at once and how many may wait: a counter with a queue in order of arrival.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <functional>
#include <list>
#include <mutex>

namespace needle {

// Thread-safe. The caller's own thread does the work: no hand-over, and the time between two
// requests is one wake-up.
class Admission {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Outcome { kAdmitted, kFull, kLate, kGone, kClosed };

  Admission(std::size_t running, std::size_t waiting);

  // Leave to run; given back at the end of the scope.
  class Ticket {
   public:
    Ticket() = default;
    Ticket(Admission* owner, Outcome outcome) : owner_(owner), outcome_(outcome) {}
    Ticket(Ticket&& other) noexcept;
    Ticket& operator=(Ticket&& other) noexcept;
    ~Ticket();
    Outcome outcome() const { return outcome_; }

   private:
    Admission* owner_ = nullptr;
    Outcome outcome_ = Outcome::kClosed;
  };

  // Waits for its turn, at most until `deadline`; asks `gone` ten times a second. Returns at once
  // with kFull if as many as may wait are waiting.
  Ticket enter(Clock::time_point deadline, const std::function<bool()>& gone);

  // Nobody enters any more; those who wait are turned away.
  void close();

  std::size_t running() const;
  std::size_t waiting() const;

 private:
  void leave();

  const std::size_t most_running_;
  const std::size_t most_waiting_;
  mutable std::mutex mutex_;
  std::list<std::condition_variable> queue_;  // one for each who waits, first come first
  std::size_t running_ = 0;
  bool closed_ = false;
};

}  // namespace needle
