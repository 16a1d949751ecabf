// Values by a text, made once and kept for those who ask again: the least recently used go first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>

namespace needle {

// Safe from several threads.
template <typename Value>
class LruCache {
 public:
  // Keeps at most `most` values, and keys of at most `most_bytes` together.
  explicit LruCache(std::size_t most, std::size_t most_bytes = SIZE_MAX)
      : most_(most), most_bytes_(most_bytes) {}

  // What is kept under `key`, else make(), which returns shared_ptr<const Value>. It runs outside
  // the lock: a slow one holds nobody up, and two threads may make the same. What it throws is not
  // kept.
  template <typename Make>
  std::shared_ptr<const Value> find_or_make(std::string key, const Make& make) {
    {
      const std::lock_guard lock(mutex_);
      if (const auto found = by_key_.find(key); found != by_key_.end()) {
        entries_.splice(entries_.begin(), entries_, found->second);
        return entries_.front().second;
      }
    }
    std::shared_ptr<const Value> value = make();
    const std::lock_guard lock(mutex_);
    if (key.size() > most_bytes_ || most_ == 0 || by_key_.contains(key)) {
      return value;
    }
    while (!entries_.empty() && (entries_.size() >= most_ || bytes_ + key.size() > most_bytes_)) {
      bytes_ -= entries_.back().first.size();
      by_key_.erase(entries_.back().first);
      entries_.pop_back();
    }
    bytes_ += key.size();
    entries_.emplace_front(std::move(key), value);
    by_key_.emplace(entries_.front().first, entries_.begin());
    return value;
  }

  std::size_t size() const {
    const std::lock_guard lock(mutex_);
    return entries_.size();
  }

 private:
  using Entry = std::pair<std::string, std::shared_ptr<const Value>>;

  const std::size_t most_;
  const std::size_t most_bytes_;
  mutable std::mutex mutex_;
  std::size_t bytes_ = 0;     // of the keys
  std::list<Entry> entries_;  // the last used first
  std::unordered_map<std::string_view, typename std::list<Entry>::iterator> by_key_;  // views
};

}  // namespace needle
