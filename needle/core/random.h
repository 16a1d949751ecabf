// Random numbers that are the same on every platform and standard library.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

namespace needle {

// PCG32 (M. O'Neill, 2014): 64 bits of state, plain data, so that a checkpoint can hold it. Not
// thread-safe.
class Random {
 public:
  struct State {
    std::uint64_t state = 0;
    std::uint64_t increment = 1;
  };

  explicit Random(std::uint64_t seed, std::uint64_t stream = 0);
  static Random from_state(const State& state);  // goes on where state() was taken
  State state() const { return {.state = state_, .increment = increment_}; }

  std::uint32_t next_u32();
  std::uint64_t next_u64();
  std::uint32_t below(std::uint32_t bound);  // uniform in [0, bound), without bias; bound > 0
  double uniform();                          // [0, 1), 53 bits
  double normal();                           // Box-Muller, no cached second value

  template <typename T>
  void shuffle(std::span<T> items) {  // Fisher-Yates from the last index down
    for (std::size_t i = items.size(); i > 1; --i) {
      std::swap(items[i - 1], items[below(static_cast<std::uint32_t>(i))]);
    }
  }

 private:
  std::uint64_t state_;
  std::uint64_t increment_;
};

// A seed for one purpose at one place in a run: every draw follows from (seed, purpose, step, rank)
// alone, so a resumed run draws what an uninterrupted one would.
std::uint64_t derive_seed(std::uint64_t seed, std::string_view purpose, std::uint64_t step = 0,
                          std::uint64_t rank = 0);

}  // namespace needle
