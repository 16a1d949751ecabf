#include "needle/server/admission.h"

#include <algorithm>
#include <utility>

namespace needle {

Admission::Admission(std::size_t running, std::size_t waiting)
    : most_running_(std::max<std::size_t>(1, running)), most_waiting_(waiting) {
  for (std::size_t i = 0; i < most_running_; ++i) {
    threads_.emplace_back([this] { do_waiting_work(); });
  }
}

Admission::~Admission() {
  {
    const std::lock_guard lock(mutex_);
    over_ = true;
  }
  has_work_.notify_all();
  for (std::thread& thread : threads_) {
    thread.join();
  }
}

Admission::Ticket::Ticket(Ticket&& other) noexcept
    : owner_(std::exchange(other.owner_, nullptr)), outcome_(other.outcome_) {}

Admission::Ticket& Admission::Ticket::operator=(Ticket&& other) noexcept {
  std::swap(owner_, other.owner_);
  std::swap(outcome_, other.outcome_);
  return *this;
}

Admission::Ticket::~Ticket() {
  if (owner_ != nullptr) {
    owner_->leave();
  }
}

Admission::Outcome Admission::wait(std::unique_lock<std::mutex>& lock,
                                   const std::shared_ptr<Entry>& entry, Clock::time_point deadline,
                                   const std::function<bool()>& gone) {
  if (closed_) {
    return Outcome::kClosed;
  }
  if (running_ < most_running_ && queue_.empty()) {
    ++running_;
    return Outcome::kAdmitted;
  }
  if (queue_.size() >= most_waiting_) {
    return Outcome::kFull;
  }
  entry->deadline = deadline;
  queue_.push_back(entry);
  if (running_ < most_running_) {
    has_work_.notify_one();
  }
  while (!entry->admitted) {
    const auto now = Clock::now();
    const bool late = entry->late || now >= deadline;
    const Outcome outcome = closed_  ? Outcome::kClosed
                            : late   ? Outcome::kLate
                            : gone() ? Outcome::kGone
                                     : Outcome::kAdmitted;
    if (outcome != Outcome::kAdmitted) {
      std::erase(queue_, entry);
      return outcome;
    }
    entry->changed.wait_until(lock, std::min(deadline, now + std::chrono::milliseconds(100)));
  }
  return Outcome::kAdmitted;
}

Admission::Outcome Admission::run(Clock::time_point deadline, const std::function<bool()>& gone,
                                  const std::function<void()>& work) {
  const auto entry = std::make_shared<Entry>();
  entry->work = &work;
  std::unique_lock lock(mutex_);
  const Outcome outcome = wait(lock, entry, deadline, gone);
  if (outcome != Outcome::kAdmitted) {
    return outcome;
  }
  if (!entry->admitted) {  // there was a place at once
    lock.unlock();
    const Ticket ticket(this, outcome);
    work();
    return outcome;
  }
  entry->changed.wait(lock, [&] { return entry->done; });
  if (entry->error) {  // taken along: it must not end on the thread that still holds the entry
    std::rethrow_exception(std::exchange(entry->error, nullptr));
  }
  return outcome;
}

Admission::Ticket Admission::enter(Clock::time_point deadline, const std::function<bool()>& gone) {
  const auto entry = std::make_shared<Entry>();
  std::unique_lock lock(mutex_);
  const Outcome outcome = wait(lock, entry, deadline, gone);
  return {outcome == Outcome::kAdmitted ? this : nullptr, outcome};
}

// Those at the head of the queue who work on threads of their own, as far as there are places.
void Admission::admit_own_threads() {
  while (!queue_.empty() && queue_.front()->work == nullptr && running_ < most_running_) {
    ++running_;
    queue_.front()->admitted = true;
    queue_.front()->changed.notify_one();
    queue_.pop_front();
  }
}

void Admission::leave() {
  const std::lock_guard lock(mutex_);
  --running_;
  admit_own_threads();
  if (!queue_.empty() && running_ < most_running_) {
    has_work_.notify_one();
  }
}

// What each thread of threads_ does.
void Admission::do_waiting_work() {
  std::unique_lock lock(mutex_);
  while (true) {
    has_work_.wait(lock, [&] { return over_ || (!queue_.empty() && running_ < most_running_); });
    if (over_) {
      return;
    }
    admit_own_threads();
    if (queue_.empty() || running_ == most_running_) {
      continue;
    }
    const std::shared_ptr<Entry> entry = std::move(queue_.front());
    queue_.pop_front();
    if (Clock::now() >= entry->deadline) {  // its thread would have said so, but was not faster
      entry->late = true;
      entry->changed.notify_one();
      continue;
    }
    entry->admitted = true;
    ++running_;
    lock.unlock();
    try {
      (*entry->work)();
    } catch (...) {
      entry->error = std::current_exception();
    }
    lock.lock();
    --running_;
    entry->done = true;
    lock.unlock();
    entry->changed.notify_one();  // outside: it would wake only to wait for the lock
    lock.lock();
  }
}

void Admission::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (const auto& waiting : queue_) {
    waiting->changed.notify_one();
  }
}

std::size_t Admission::running() const {
  const std::lock_guard lock(mutex_);
  return running_;
}

std::size_t Admission::waiting() const {
  const std::lock_guard lock(mutex_);
  return queue_.size();
}

}  // namespace needle
