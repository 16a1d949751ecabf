// Tasks that the ranks of one host take from each other: each has some of its own, does those, and
// then what others have not begun. Half of the work each would wait for the slower core.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "needle/train/shared_exchange.h"

namespace needle {

class TaskBoard {
 public:
  // What a rank with so many tasks needs of its shared memory, zeros at first.
  static std::size_t bytes(std::size_t tasks);

  // `parts`: that memory of every rank, `tasks`: how many each has. Refers to all of it.
  TaskBoard(SharedExchange& exchange, std::int64_t rank,
            const std::vector<std::span<std::byte>>& parts, const std::vector<std::size_t>& tasks);

  // Calls work(owner, task) for tasks that are `wanted` (the same on every rank); each is done
  // once, by some rank. Returns when those of this rank are, with what was written for them to be
  // seen. A rank's tasks are open to others from its call on. `round`: the same number on all,
  // another one each time. Throws what `work` and the exchange's watch throw.
  using Task = std::function<bool(std::int64_t owner, std::size_t task)>;
  using Work = std::function<void(std::int64_t owner, std::size_t task)>;
  void run(std::uint32_t round, const Task& wanted, const Work& work);

  std::int64_t done_for_others() const { return done_for_others_; }

 private:
  struct Head;
  Head& head(std::int64_t rank) const;
  bool take(std::int64_t owner, std::size_t task, std::uint32_t round) const;

  SharedExchange& exchange_;
  std::int64_t rank_;
  std::vector<std::span<std::byte>> parts_;
  std::vector<std::size_t> tasks_;
  std::uint32_t own_done_ = 0;
  std::int64_t done_for_others_ = 0;
};

}  // namespace needle
