#include "needle/data/contrastive.h"

#include <algorithm>
#include <cstddef>
#include <limits>
#include <unordered_map>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/random.h"

namespace needle {
namespace {

std::vector<std::int64_t> called_tools(const PackedDataset& dataset, std::int64_t example) {
  std::vector<std::int64_t> tools;
  for (std::int64_t tool = 0; tool < dataset.tool_count(example); ++tool) {
    if (dataset.tool_called(example, tool)) {
      tools.push_back(tool);
    }
  }
  return tools;
}

// The first `count` items of a Fisher-Yates shuffle of 0, 1, ..., size - 1, without holding all.
std::vector<std::size_t> draw_distinct(std::size_t count, std::size_t size, Random& random) {
  std::unordered_map<std::size_t, std::size_t> moved;
  const auto item_at = [&moved](std::size_t place) {
    const auto found = moved.find(place);
    return found != moved.end() ? found->second : place;
  };
  std::vector<std::size_t> drawn;
  for (std::size_t i = 0; i < count; ++i) {
    const std::size_t place = i + random.below(static_cast<std::uint32_t>(size - i));
    drawn.push_back(item_at(place));
    moved[place] = item_at(i);
  }
  return drawn;
}

std::int64_t padded_length(const std::vector<std::vector<TokenId>>& rows, std::int64_t multiple) {
  std::size_t longest = 1;
  for (const std::vector<TokenId>& row : rows) {
    longest = std::max(longest, row.size());
  }
  return (static_cast<std::int64_t>(longest) + multiple - 1) / multiple * multiple;
}

std::vector<TokenId> padded(const std::vector<std::vector<TokenId>>& rows, std::int64_t length) {
  std::vector<TokenId> ids(rows.size() * static_cast<std::size_t>(length), kPadId);
  for (std::size_t i = 0; i < rows.size(); ++i) {
    std::copy(rows[i].begin(), rows[i].end(),
              ids.begin() + static_cast<std::ptrdiff_t>(i) * length);
  }
  return ids;
}

}  // namespace

ContrastiveSampler::ContrastiveSampler(PackedDataset dataset, const ContrastiveOptions& options)
    : dataset_(std::move(dataset)), options_(options) {
  NEEDLE_CHECK(options.batch_rows >= 1 && options.length_multiple >= 1,
               "batch_rows is {}, length_multiple is {}", options.batch_rows,
               options.length_multiple);
  NEEDLE_CHECK(dataset_.example_count() <= std::numeric_limits<std::int32_t>::max(), "{} examples",
               dataset_.example_count());
  for (std::int64_t example = 0; example < dataset_.example_count(); ++example) {
    if (!called_tools(dataset_, example).empty()) {
      examples_.push_back(example);
    }
  }
}

ContrastiveBatch ContrastiveSampler::batch(std::int64_t step, std::int64_t rank) const {
  Random random(derive_seed(options_.seed, "contrastive", static_cast<std::uint64_t>(step),
                            static_cast<std::uint64_t>(rank)));
  ContrastiveBatch batch;
  batch.rows = std::min(options_.batch_rows, query_count());
  std::vector<std::vector<TokenId>> queries;
  std::vector<std::vector<TokenId>> tools;
  for (const std::size_t drawn :
       draw_distinct(static_cast<std::size_t>(batch.rows), examples_.size(), random)) {
    const std::int64_t example = examples_[drawn];
    const std::vector<std::int64_t> called = called_tools(dataset_, example);
    const std::int64_t tool = called[random.below(static_cast<std::uint32_t>(called.size()))];
    queries.push_back(dataset_.query_ids(example));
    tools.push_back(dataset_.tool_ids(example, tool));
  }
  batch.query_len = padded_length(queries, options_.length_multiple);
  batch.tool_len = padded_length(tools, options_.length_multiple);
  batch.queries = padded(queries, batch.query_len);
  batch.tools = padded(tools, batch.tool_len);
  return batch;
}

}  // namespace needle
