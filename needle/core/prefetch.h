// Values made ahead of time on a thread of their own.
#pragma once

#include <condition_variable>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <mutex>
#include <optional>
#include <thread>
#include <utility>

namespace needle {

// make() is called again and again on one other thread, at most `depth` values ahead of next(), so
// that the order is that of a plain loop. What make() throws comes out of next() in its turn;
// nothing is made after that. The destructor waits for a make() under way. next() is for one
// thread.
template <typename T>
class Prefetch {
 public:
  Prefetch(std::function<T()> make, std::size_t depth)
      : make_(std::move(make)), depth_(depth > 0 ? depth : 1), thread_([this] { run(); }) {}

  ~Prefetch() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
    }
    changed_.notify_all();
    thread_.join();
  }
  Prefetch(const Prefetch&) = delete;
  Prefetch& operator=(const Prefetch&) = delete;

  // The next value; waits for it. After an exception the same one again.
  T next() {
    std::unique_lock lock(mutex_);
    changed_.wait(lock, [this] { return !ready_.empty() || error_ != nullptr; });
    if (ready_.empty()) {
      std::rethrow_exception(error_);
    }
    T value = std::move(ready_.front());
    ready_.pop_front();
    lock.unlock();
    changed_.notify_all();
    return value;
  }

 private:
  void run() {
    while (true) {
      {
        std::unique_lock lock(mutex_);
        changed_.wait(lock, [this] { return ended_ || ready_.size() < depth_; });
        if (ended_) {
          return;
        }
      }
      std::optional<T> value;
      std::exception_ptr error;
      try {
        value.emplace(make_());
      } catch (...) {
        error = std::current_exception();
      }
      {
        const std::lock_guard lock(mutex_);
        if (value) {
          ready_.push_back(std::move(*value));
        }
        error_ = error;
      }
      changed_.notify_all();
      if (error != nullptr) {
        return;
      }
    }
  }

  std::function<T()> make_;
  std::size_t depth_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<T> ready_;
  std::exception_ptr error_;
  bool ended_ = false;
  std::thread thread_;  // last: it uses the others
};

}  // namespace needle
