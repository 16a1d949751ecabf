// How a prompt's rows are dealt out to threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "needle/runtime/layers.h"
#include "needle/runtime/model.h"

namespace needle::runtime {

// Rows that go through a layer together: what they need stays in the L2 cache.
inline constexpr std::int64_t kChunkRows = 96;
static_assert(kChunkRows % kAttendRows == 0 && kChunkRows % kAttendTile == 0);

// Whether every matrix that a prompt goes through is used in 4 bits.
bool all_int4(const Model& model);

// A prompt's rows, dealt out to threads.
class RowTeam {
 public:
  RowTeam(const Machine& machine, const Model& model, std::int64_t rows)
      : machine_(machine),
        rows_(rows),
        unit_(all_int4(model) ? machine.kernels->attend_rows : kChunkRows) {}

  std::size_t threads() const { return machine_.thread_count(); }

  // body(thread, first row, rows) for chunks of at most kChunkRows.
  template <typename Body>
  void each_chunk(Body&& body) const {
    const std::int64_t units = (rows_ + unit_ - 1) / unit_;
    const auto run = [&](std::size_t thread, std::size_t threads) {
      const auto index = static_cast<std::int64_t>(thread);
      const auto count = static_cast<std::int64_t>(threads);
      const std::int64_t end = std::min(rows_, units * (index + 1) / count * unit_);
      for (std::int64_t row = units * index / count * unit_; row < end; row += kChunkRows) {
        body(thread, row, std::min(kChunkRows, end - row));
      }
    };
    if (units == 1) {
      run(0, 1);
    } else {
      machine_.team(run);
    }
  }

 private:
  const Machine& machine_;
  std::int64_t rows_;
  // Integer sums are exact, so rows can be cut anywhere; float products may differ in a bit where
  // there are fewer rows, so chunks must not depend on the threads.
  std::int64_t unit_;
};

}  // namespace needle::runtime
