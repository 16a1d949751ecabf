// Which rows come next: a new order every epoch, a slice per rank, resumable at any batch.
#pragma once

#include <cstdint>
#include <vector>

namespace needle {

// Where a run is in its data: plain numbers, saved with every checkpoint.
struct SamplerState {
  std::int64_t epoch = 0;
  std::int64_t position = 0;  // batches of this epoch already handed out

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("epoch", self.epoch, "Passes over the data begun before this one");
    visit("position", self.position, "Batches of this epoch already handed out");
  }
  bool operator==(const SamplerState&) const = default;
};

struct SamplerOptions {
  std::int64_t row_count = 0;
  std::int64_t batch_rows = 1;  // per rank
  std::uint64_t seed = 42;
  std::int64_t rank = 0;
  std::int64_t world = 1;
  bool shuffle = true;  // false: file order, e.g. for validation
};

// The order of an epoch follows from derive_seed(seed, "epoch", epoch) alone. A global batch is
// `world * batch_rows` rows of that order; each rank takes a slice of it. The last batch of an
// epoch may be smaller: nothing is dropped. A rank for which it holds no row repeats one of it, so
// that no rank is ever without work. Not thread-safe.
class Sampler {
 public:
  // Throws Error if row_count or batch_rows is below 1, rank is not below world, or the state lies
  // outside the data.
  explicit Sampler(const SamplerOptions& options, const SamplerState& state = {});

  // This rank's rows of the next batch: at least one. After an epoch's last batch the next epoch
  // begins.
  std::vector<std::int64_t> next();

  std::int64_t batches_per_epoch() const;
  const SamplerState& state() const { return state_; }
  bool at_epoch_start() const { return state_.position == 0; }

 private:
  void reorder();
  SamplerOptions options_;
  SamplerState state_;
  std::vector<std::int64_t> order_;
};

}  // namespace needle
