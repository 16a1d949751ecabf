// What the ranks of one host exchange through memory that all of them map, without copies through
// sockets and without threads: whoever needs a number reads it where another rank wrote it.
//
// Sums are taken in the order of the ranks, so that all of them, and every run, get the same bits.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>

#include "needle/train/shared_memory.h"

namespace needle {

// Whoever watches over the ranks.
struct SharedWatch {
  std::function<void()> passed_collective;          // called before each; throws if none may follow
  std::function<void()> look_up;                    // now and then while waiting; throws to end it
  std::function<void(double seconds)> waited = {};  // for others
};

// From one thread at a time; every rank makes the same calls in the same order. Throws what the
// watch throws.
class SharedExchange {
 public:
  // Null, in all ranks, if one of them cannot: `reason` says which and why. `refusal`: of this one,
  // empty if it can.
  static std::unique_ptr<SharedExchange> join(std::int64_t rank, std::int64_t world,
                                              const std::string& refusal,
                                              const SharedNotices& notices, SharedWatch watch,
                                              std::string& reason);

  template <typename Number>  // float, double, std::int64_t
  void sum(std::span<Number> numbers);
  void broadcast(std::span<std::byte> bytes, std::int64_t root);

  // Memory of the caller's own making: `bytes` of this rank, any number of the others. Null, in all
  // ranks, if one of them cannot have it.
  std::shared_ptr<SharedMemory> share(std::size_t bytes, std::string& reason);

  // Events in such memory that a rank announces in turn, and others wait for by their number, from
  // 1. A number counts on from what the rank has announced before, see announced().
  enum class Event { kGradients, kParameters };
  static constexpr std::size_t kEvents = 2;
  void announce(Event event);
  std::uint32_t announced(Event event) const;  // by this rank: the same on all between steps
  void await(std::int64_t rank, Event event, std::uint32_t number);
  void await(SharedCount& count, std::uint32_t target);  // of the caller's own

 private:
  struct Desk;  // of a rank
  SharedExchange() = default;
  Desk& desk(std::int64_t rank) const;
  std::span<std::byte> slot(std::int64_t rank) const;
  void begin_round(bool writes);

  std::int64_t rank_ = 0;
  std::int64_t world_ = 1;
  SharedNotices notices_;
  SharedWatch watch_;
  std::shared_ptr<SharedMemory> memory_;
  std::uint32_t rounds_ = 0;
  std::int64_t shares_ = 0;
};

}  // namespace needle
