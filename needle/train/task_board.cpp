#include "needle/train/task_board.h"

#include <new>

namespace needle {

// In a rank's memory, before the rounds in which its tasks were last taken.
struct TaskBoard::Head {
  SharedCount done;  // by anyone
  alignas(64) std::atomic<std::uint32_t> open_round;
};

std::size_t TaskBoard::bytes(std::size_t tasks) {
  return sizeof(Head) + tasks * sizeof(std::atomic<std::uint32_t>);
}

TaskBoard::TaskBoard(SharedExchange& exchange, std::int64_t rank,
                     const std::vector<std::span<std::byte>>& parts,
                     const std::vector<std::size_t>& tasks)
    : exchange_(exchange), rank_(rank), parts_(parts), tasks_(tasks) {}

TaskBoard::Head& TaskBoard::head(std::int64_t rank) const {
  return *std::launder(reinterpret_cast<Head*>(parts_[static_cast<std::size_t>(rank)].data()));
}

bool TaskBoard::take(std::int64_t owner, std::size_t task, std::uint32_t round) const {
  auto* const taken =
      std::launder(reinterpret_cast<std::atomic<std::uint32_t>*>(&head(owner) + 1)) + task;
  std::uint32_t before = taken->load();
  return before != round && taken->compare_exchange_strong(before, round);
}

void TaskBoard::run(std::uint32_t round, const Task& wanted, const Work& work) {
  head(rank_).open_round.store(round);
  const auto count = [this](std::int64_t owner) { return tasks_[static_cast<std::size_t>(owner)]; };
  const auto attempt = [&](std::int64_t owner, std::size_t task) {
    if (!wanted(owner, task) || !take(owner, task, round)) {
      return;
    }
    work(owner, task);
    head(owner).done.raise();
    done_for_others_ += owner == rank_ ? 0 : 1;
  };
  for (std::size_t task = 0; task < count(rank_); ++task) {
    own_done_ += wanted(rank_, task) ? 1 : 0;
    attempt(rank_, task);
  }
  const auto world = static_cast<std::int64_t>(tasks_.size());
  for (std::int64_t i = 1; i < world; ++i) {
    const std::int64_t owner = (rank_ + i) % world;
    // From the end: the owner comes from the other side.
    for (std::size_t left = count(owner); left > 0 && head(owner).open_round.load() == round;
         --left) {
      attempt(owner, left - 1);
    }
  }
  exchange_.await(head(rank_).done, own_done_);
}

}  // namespace needle
