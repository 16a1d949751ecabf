// Memory that several processes of one host have in common, and how they wait for each other in it.
// Nothing has a name in a file system: the memory is gone when the last process that maps it ends,
// however it ends.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace needle {

// A number in shared memory that one process raises and others wait for. It wraps around: numbers
// that are compared lie less than 2^31 apart. All zeros at first.
struct alignas(64) SharedCount {
  std::atomic<std::uint32_t> value;
  std::atomic<std::uint32_t> sleepers;  // a process killed in its sleep costs a needless wake-up

  // What this process wrote before is seen by whoever sees the new number.
  void raise();
  bool has_reached(std::uint32_t target) const;
  // Looks for a moment, then sleeps. False: not reached within `patience`.
  bool wait_for(std::uint32_t target, std::chrono::milliseconds patience);
};
static_assert(sizeof(SharedCount) == 64 && std::atomic<std::uint32_t>::is_always_lock_free,
              "processes that know nothing of each other's code and locks meet here");

// How processes find each other's memory: texts under keys that each may post once.
struct SharedNotices {
  std::function<void(const std::string& key, const std::string& text)> post;
  std::function<std::string(const std::string& key)> await;  // until somebody has posted it
};

struct SharedMemoryRequest {
  std::string key;         // of this memory, the same in every process and used once
  std::int64_t rank = 0;   // of this process, in 0 .. world - 1
  std::int64_t world = 1;  // processes
  std::size_t bytes = 0;   // of this one's part
  std::string refusal;     // not empty: this process cannot, and why
};

// A part of each process, mapped in all of them. Thread-safe as memory is.
class SharedMemory {
 public:
  // Every process calls it. Null if one of them cannot have or map the memory (no memfd_create, not
  // enough memory, another host, no right to look into the other process): in all of them, and
  // `reason` then says who and why. Throws what `notices` throws.
  static std::shared_ptr<SharedMemory> map(const SharedMemoryRequest& request,
                                           const SharedNotices& notices, std::string& reason);
  ~SharedMemory();
  SharedMemory(const SharedMemory&) = delete;
  SharedMemory& operator=(const SharedMemory&) = delete;

  // Of one process; begins with a page, all zeros at first.
  std::span<std::byte> part(std::int64_t rank) const {
    return parts_[static_cast<std::size_t>(rank)];
  }

 private:
  SharedMemory() = default;
  std::vector<std::span<std::byte>> parts_;
};

}  // namespace needle
