// A hash table from pairs of integers to a small value: open addressing, filled once, then read.
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace needle {

// Keys are two 32-bit integers. A lookup touches one cache line on average; std::unordered_map
// follows two pointers for the same answer.
template <class Value>
class FlatMap {
 public:
  // Room for `count` entries at two thirds full at most.
  explicit FlatMap(std::size_t count = 0) : slots_(std::bit_ceil(count + count / 2 + 2)) {}

  // Keeps the first value of a key. The caller stays within the count given above.
  void insert(std::uint32_t first, std::uint32_t second, Value value) {
    Slot& slot = slots_[find_slot(first, second)];
    if (!slot.used) {
      slot = {.first = first, .second = second, .used = true, .value = value};
    }
  }

  // nullptr if there is none.
  const Value* find(std::uint32_t first, std::uint32_t second) const noexcept {
    const Slot& slot = slots_[find_slot(first, second)];
    return slot.used ? &slot.value : nullptr;
  }

 private:
  struct Slot {
    std::uint32_t first = 0;
    std::uint32_t second = 0;
    bool used = false;
    Value value{};
  };

  std::size_t find_slot(std::uint32_t first, std::uint32_t second) const noexcept {
    std::uint64_t hash = (std::uint64_t{first} << 32 | second) * 0x9E3779B97F4A7C15U;
    hash ^= hash >> 32;
    const std::size_t mask = slots_.size() - 1;
    std::size_t at = static_cast<std::size_t>(hash) & mask;
    while (slots_[at].used && (slots_[at].first != first || slots_[at].second != second)) {
      at = (at + 1) & mask;
    }
    return at;
  }

  std::vector<Slot> slots_;  // a power of two of them, never full
};

}  // namespace needle
