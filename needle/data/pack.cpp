#include "needle/data/pack.h"

#include <algorithm>
#include <bit>
#include <cstddef>
#include <numeric>

#include "needle/core/error.h"

namespace needle {
namespace {

// Free space of rows 0, 1, ..., the largest of each length at every inner node.
class FreeSpace {
 public:
  FreeSpace(std::size_t rows, const PackLimits& limits)
      : leaves_(std::bit_ceil(std::max<std::size_t>(rows, 1))),
        nodes_(2 * leaves_, {limits.max_enc_len, limits.max_dec_len}) {}

  // Takes the space from the first row that has it.
  std::size_t take_first(const ExampleLength& wanted) {
    const std::size_t leaf = first_fit(1, wanted);
    NEEDLE_CHECK(leaf != kNone, "no row has room for {} + {} tokens", wanted.encoder,
                 wanted.decoder);
    nodes_[leaf].encoder -= wanted.encoder;
    nodes_[leaf].decoder -= wanted.decoder;
    for (std::size_t node = leaf / 2; node >= 1; node /= 2) {
      const ExampleLength& left = nodes_[2 * node];
      const ExampleLength& right = nodes_[2 * node + 1];
      nodes_[node] = {std::max(left.encoder, right.encoder), std::max(left.decoder, right.decoder)};
    }
    return leaf - leaves_;
  }

 private:
  static constexpr std::size_t kNone = 0;

  // The two maxima of a node may belong to different rows, so a subtree that looks promising may
  // hold no fit and the search goes on to its right. Depth: log2 of the rows.
  std::size_t first_fit(std::size_t node, const ExampleLength& wanted) const {
    if (nodes_[node].encoder < wanted.encoder || nodes_[node].decoder < wanted.decoder) {
      return kNone;
    }
    if (node >= leaves_) {
      return node;
    }
    const std::size_t left = first_fit(2 * node, wanted);
    return left != kNone ? left : first_fit(2 * node + 1, wanted);
  }

  std::size_t leaves_;
  std::vector<ExampleLength> nodes_;  // a heap: children of n are 2n and 2n + 1
};

}  // namespace

std::vector<std::vector<std::int64_t>> pack_rows(std::span<const ExampleLength> lengths,
                                                 const PackLimits& limits) {
  for (std::size_t i = 0; i < lengths.size(); ++i) {
    NEEDLE_CHECK(
        lengths[i].encoder <= limits.max_enc_len && lengths[i].decoder <= limits.max_dec_len,
        "example {} has {} + {} tokens, a row holds {} + {}", i, lengths[i].encoder,
        lengths[i].decoder, limits.max_enc_len, limits.max_dec_len);
  }
  std::vector<std::size_t> order(lengths.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](std::size_t a, std::size_t b) {
    return lengths[a].encoder > lengths[b].encoder;
  });

  FreeSpace space(lengths.size(),
                  limits);  // rows not yet begun are free: the first of them is next
  std::vector<std::vector<std::int64_t>> rows;
  for (const std::size_t example : order) {
    const std::size_t row = space.take_first(lengths[example]);
    if (row >= rows.size()) {
      rows.resize(row + 1);
    }
    rows[row].push_back(static_cast<std::int64_t>(example));
  }
  return rows;
}

}  // namespace needle
