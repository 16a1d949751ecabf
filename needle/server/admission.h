// How many requests run at once and how many may wait, in order of arrival.
#pragma once

#include <chrono>
#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

namespace needle {

// Thread-safe. While nobody waits, the caller's own thread does the work: no hand-over. Work that
// had to wait is done by threads of the admission's own, one a place, which go from one to the next
// without sleeping: a thread that is woken for its turn leaves a core idle until it comes.
class Admission {
 public:
  using Clock = std::chrono::steady_clock;
  enum class Outcome { kAdmitted, kFull, kLate, kGone, kClosed };

  Admission(std::size_t running, std::size_t waiting);
  ~Admission();  // nobody may be inside
  Admission(const Admission&) = delete;
  Admission& operator=(const Admission&) = delete;

  // Waits for its turn, at most until `deadline`; asks `gone` ten times a second until then.
  // Returns at once with kFull if as many as may wait are waiting. kAdmitted: `work` was done; what
  // it throws comes out here.
  Outcome run(Clock::time_point deadline, const std::function<bool()>& gone,
              const std::function<void()>& work);

  // Leave to run on the caller's own thread; given back at the end of the scope.
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

  // The same for work that the caller does later, in pieces.
  Ticket enter(Clock::time_point deadline, const std::function<bool()>& gone);

  // Nobody enters any more; those who wait are turned away.
  void close();

  std::size_t running() const;
  std::size_t waiting() const;

 private:
  struct Entry {
    const std::function<void()>* work = nullptr;  // of who waits; none: its own thread runs
    Clock::time_point deadline;
    bool admitted = false;
    bool late = false;  // its turn came after its deadline
    bool done = false;
    std::exception_ptr error;
    std::condition_variable changed;
  };

  // Takes a free place, or waits for one in the queue.
  Outcome wait(std::unique_lock<std::mutex>& lock, const std::shared_ptr<Entry>& entry,
               Clock::time_point deadline, const std::function<bool()>& gone);
  void leave();
  void admit_own_threads();
  void do_waiting_work();

  const std::size_t most_running_;
  const std::size_t most_waiting_;
  mutable std::mutex mutex_;
  std::deque<std::shared_ptr<Entry>> queue_;
  std::condition_variable has_work_;
  std::size_t running_ = 0;
  bool closed_ = false;
  bool over_ = false;
  std::vector<std::thread> threads_;
};

}  // namespace needle
