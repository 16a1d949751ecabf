#include "needle/data/sampler.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <numeric>
#include <span>

#include "needle/core/error.h"
#include "needle/core/random.h"

namespace needle {

Sampler::Sampler(const SamplerOptions& options, const SamplerState& state)
    : options_(options), state_(state) {
  NEEDLE_CHECK(
      options.row_count >= 1 && options.row_count <= std::numeric_limits<std::int32_t>::max(),
      "row_count is {}: expected 1 to 2^31 - 1", options.row_count);
  NEEDLE_CHECK(options.batch_rows >= 1 && options.world >= 1, "batch_rows is {}, world is {}",
               options.batch_rows, options.world);
  NEEDLE_CHECK(options.rank >= 0 && options.rank < options.world, "rank is {} of {}", options.rank,
               options.world);
  NEEDLE_CHECK(state.epoch >= 0 && state.position >= 0 && state.position < batches_per_epoch(),
               "the data position (epoch {}, batch {}) lies outside an epoch of {} batches: it "
               "belongs to other data or another batch size",
               state.epoch, state.position, batches_per_epoch());
  reorder();
}

std::int64_t Sampler::batches_per_epoch() const {
  const std::int64_t global = options_.batch_rows * options_.world;
  return (options_.row_count + global - 1) / global;
}

void Sampler::reorder() {
  order_.resize(static_cast<std::size_t>(options_.row_count));
  std::iota(order_.begin(), order_.end(), std::int64_t{0});
  if (options_.shuffle) {
    Random random(derive_seed(options_.seed, "epoch", static_cast<std::uint64_t>(state_.epoch)));
    random.shuffle(std::span<std::int64_t>(order_));
  }
}

std::vector<std::int64_t> Sampler::next() {
  const std::int64_t global = options_.batch_rows * options_.world;
  const std::int64_t begin = state_.position * global;
  const std::int64_t count = std::min(global, options_.row_count - begin);
  std::int64_t first =
      options_.rank * count / options_.world;  // even shares of a partial batch too
  std::int64_t last = (options_.rank + 1) * count / options_.world;
  if (first == last) {
    first = options_.rank % count;
    last = first + 1;
  }
  std::vector<std::int64_t> rows(order_.begin() + begin + first, order_.begin() + begin + last);
  if (++state_.position == batches_per_epoch()) {
    state_ = {.epoch = state_.epoch + 1, .position = 0};
    reorder();
  }
  return rows;
}

}  // namespace needle
