#include "needle/core/random.h"

#include <bit>
#include <cmath>
#include <numbers>

#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::uint64_t kMultiplier = 6364136223846793005ULL;

// The finaliser of SplitMix64 (G. Steele et al., 2014), which spreads every bit over the whole
// word.
std::uint64_t mix(std::uint64_t x) {
  x += 0x9e3779b97f4a7c15ULL;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ULL;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebULL;
  return x ^ (x >> 31);
}

}  // namespace

Random::Random(std::uint64_t seed, std::uint64_t stream) : state_(0), increment_(stream << 1 | 1) {
  next_u32();
  state_ += seed;
  next_u32();
}

Random Random::from_state(const State& state) {
  NEEDLE_CHECK(state.increment % 2 == 1, "the increment of PCG32 is odd, got {}", state.increment);
  Random random(0);
  random.state_ = state.state;
  random.increment_ = state.increment;
  return random;
}

std::uint32_t Random::next_u32() {
  const std::uint64_t old = state_;
  state_ = old * kMultiplier + increment_;
  const auto shifted = static_cast<std::uint32_t>(((old >> 18) ^ old) >> 27);
  return std::rotr(shifted, static_cast<int>(old >> 59));
}

std::uint64_t Random::next_u64() {
  const std::uint64_t high = next_u32();
  return high << 32 | next_u32();
}

std::uint32_t Random::below(std::uint32_t bound) {
  NEEDLE_CHECK(bound > 0, "a number below 0 was asked for");
  const std::uint32_t threshold =
      (0u - bound) % bound;  // 2^32 mod bound: what is left is a multiple of bound
  for (;;) {
    const std::uint32_t draw = next_u32();
    if (draw >= threshold) {
      return draw % bound;
    }
  }
}

double Random::uniform() { return static_cast<double>(next_u64() >> 11) * 0x1p-53; }

double Random::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));  // 1 - u is never 0
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}

std::uint64_t derive_seed(std::uint64_t seed, std::string_view purpose, std::uint64_t step,
                          std::uint64_t rank) {
  std::uint64_t name = 0xcbf29ce484222325ULL;  // FNV-1a
  for (const char c : purpose) {
    name = (name ^ static_cast<unsigned char>(c)) * 0x100000001b3ULL;
  }
  std::uint64_t hash = mix(seed);
  for (const std::uint64_t part : {name, step, rank}) {
    hash = mix(hash ^ mix(part));
  }
  return hash;
}

}  // namespace needle
