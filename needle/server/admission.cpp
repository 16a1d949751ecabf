#include "needle/server/admission.h"

#include <algorithm>
#include <utility>

namespace needle {

Admission::Admission(std::size_t running, std::size_t waiting)
    : most_running_(std::max<std::size_t>(1, running)), most_waiting_(waiting) {}

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

Admission::Ticket Admission::enter(Clock::time_point deadline, const std::function<bool()>& gone) {
  std::unique_lock lock(mutex_);
  if (closed_) {
    return {nullptr, Outcome::kClosed};
  }
  if (running_ < most_running_ && queue_.empty()) {
    ++running_;
    return {this, Outcome::kAdmitted};
  }
  if (queue_.size() >= most_waiting_) {
    return {nullptr, Outcome::kFull};
  }
  const auto place = queue_.emplace(queue_.end());
  Outcome outcome = Outcome::kAdmitted;
  while (!(place == queue_.begin() && running_ < most_running_)) {
    const auto now = Clock::now();
    if (closed_) {
      outcome = Outcome::kClosed;
    } else if (now >= deadline) {
      outcome = Outcome::kLate;
    } else if (gone()) {
      outcome = Outcome::kGone;
    }
    if (outcome != Outcome::kAdmitted) {
      break;
    }
    place->wait_until(lock, std::min(deadline, now + std::chrono::milliseconds(100)));
  }
  queue_.erase(place);
  if (outcome == Outcome::kAdmitted) {
    ++running_;
  }
  if (!queue_.empty() && running_ < most_running_) {
    queue_.front().notify_one();  // the next one's turn, too
  }
  return {outcome == Outcome::kAdmitted ? this : nullptr, outcome};
}

void Admission::leave() {
  const std::lock_guard lock(mutex_);
  --running_;
  if (!queue_.empty()) {
    queue_.front().notify_one();
  }
}

void Admission::close() {
  const std::lock_guard lock(mutex_);
  closed_ = true;
  for (std::condition_variable& waiting : queue_) {
    waiting.notify_one();
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
