// Query-tool pairs for retrieval (specification, section 4).
#pragma once

#include <cstdint>
#include <vector>

#include "needle/data/batch.h"
#include "needle/data/packed_dataset.h"

namespace needle {

struct ContrastiveOptions {
  std::int64_t batch_rows = 64;
  std::uint64_t seed = 42;
  std::int64_t length_multiple = 8;  // padded lengths are rounded up to a multiple
};

// Draws queries that have a positive tool, each with one of its positive tools. Immutable: safe
// from several threads.
class ContrastiveSampler {
 public:
  explicit ContrastiveSampler(PackedDataset dataset, const ContrastiveOptions& options = {});

  std::int64_t query_count() const { return static_cast<std::int64_t>(examples_.size()); }

  // `min(batch_rows, query_count())` different queries; the draw follows from derive_seed(seed,
  // "contrastive", step, rank) alone. With fewer than two rows there are no negatives: the loss is
  // then none.
  ContrastiveBatch batch(std::int64_t step, std::int64_t rank = 0) const;

 private:
  PackedDataset dataset_;
  ContrastiveOptions options_;
  std::vector<std::int64_t> examples_;  // with a positive tool
};

}  // namespace needle
