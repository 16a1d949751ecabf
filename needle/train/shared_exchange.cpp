#include "needle/train/shared_exchange.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <new>
#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

using Clock = std::chrono::steady_clock;

constexpr std::size_t kSlotBytes = std::size_t{1} << 18;
constexpr std::chrono::milliseconds kLookUp{200};

}  // namespace

// Two slots in turn: who writes one again knows by the round between that all have read it.
struct SharedExchange::Desk {
  SharedCount rounds;  // begun by this rank
  std::array<SharedCount, kEvents> events;
  alignas(64) std::array<std::array<std::byte, kSlotBytes>, 2> slots;
};

SharedExchange::Desk& SharedExchange::desk(std::int64_t rank) const {
  return *std::launder(reinterpret_cast<Desk*>(memory_->part(rank).data()));
}

std::span<std::byte> SharedExchange::slot(std::int64_t rank) const {
  return desk(rank).slots[rounds_ % 2];
}

std::unique_ptr<SharedExchange> SharedExchange::join(std::int64_t rank, std::int64_t world,
                                                     const std::string& refusal,
                                                     const SharedNotices& notices,
                                                     SharedWatch watch, std::string& reason) {
  std::unique_ptr<SharedExchange> exchange(new SharedExchange());
  exchange->rank_ = rank;
  exchange->world_ = world;
  exchange->notices_ = notices;
  exchange->watch_ = std::move(watch);
  exchange->memory_ = SharedMemory::map({.key = "shared/desks",
                                         .rank = rank,
                                         .world = world,
                                         .bytes = sizeof(Desk),
                                         .refusal = refusal},
                                        notices, reason);
  if (exchange->memory_ == nullptr) {
    return nullptr;
  }
  return exchange;
}

void SharedExchange::await(SharedCount& count, std::uint32_t target) {
  if (count.has_reached(target)) {
    return;
  }
  const auto start = Clock::now();
  while (!count.wait_for(target, kLookUp)) {
    watch_.look_up();
  }
  if (watch_.waited) {
    watch_.waited(std::chrono::duration<double>(Clock::now() - start).count());
  }
}

// Afterwards this rank may write its slot, if it asked to. A rank that has begun the round before
// this one has read everything of the one before that, which had the same slot.
void SharedExchange::begin_round(bool writes) {
  for (std::int64_t other = 0; writes && other < world_; ++other) {
    if (other != rank_) {
      await(desk(other).rounds, rounds_);
    }
  }
}

template <typename Number>
void SharedExchange::sum(std::span<Number> numbers) {
  watch_.passed_collective();
  constexpr std::size_t kMost = kSlotBytes / sizeof(Number);
  for (std::size_t done = 0; done < numbers.size(); done += kMost) {
    const auto part = numbers.subspan(done, std::min(kMost, numbers.size() - done));
    begin_round(true);
    std::memcpy(slot(rank_).data(), part.data(), part.size_bytes());
    desk(rank_).rounds.raise();
    for (std::int64_t other = 0; other < world_; ++other) {
      await(desk(other).rounds, rounds_ + 1);
      const auto* const given = reinterpret_cast<const Number*>(slot(other).data());
      for (std::size_t i = 0; i < part.size(); ++i) {
        part[i] = other == 0 ? given[i] : part[i] + given[i];
      }
    }
    ++rounds_;
  }
}

template void SharedExchange::sum(std::span<float> numbers);
template void SharedExchange::sum(std::span<double> numbers);
template void SharedExchange::sum(std::span<std::int64_t> numbers);

void SharedExchange::broadcast(std::span<std::byte> bytes, std::int64_t root) {
  watch_.passed_collective();
  for (std::size_t done = 0; done < bytes.size(); done += kSlotBytes) {
    const auto part = bytes.subspan(done, std::min(kSlotBytes, bytes.size() - done));
    begin_round(rank_ == root);
    if (rank_ == root) {
      std::memcpy(slot(root).data(), part.data(), part.size());
    }
    desk(rank_).rounds.raise();
    if (rank_ != root) {
      await(desk(root).rounds, rounds_ + 1);
      std::memcpy(part.data(), slot(root).data(), part.size());
    }
    ++rounds_;
  }
}

std::shared_ptr<SharedMemory> SharedExchange::share(std::size_t bytes, std::string& reason) {
  return SharedMemory::map({.key = format("shared/{}", shares_++),
                            .rank = rank_,
                            .world = world_,
                            .bytes = bytes,
                            .refusal = {}},
                           notices_, reason);
}

void SharedExchange::announce(Event event) {
  watch_.passed_collective();
  desk(rank_).events[static_cast<std::size_t>(event)].raise();
}

std::uint32_t SharedExchange::announced(Event event) const {
  return desk(rank_).events[static_cast<std::size_t>(event)].value.load();
}

void SharedExchange::await(std::int64_t rank, Event event, std::uint32_t number) {
  await(desk(rank).events[static_cast<std::size_t>(event)], number);
}

}  // namespace needle
