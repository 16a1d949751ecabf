// How well the right tools are found: recall@1..5 and mean reciprocal rank (specification,
// section 9).
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "needle/decode/retrieve.h"
#include "needle/eval/eval_case.h"

namespace needle {

inline constexpr std::size_t kRecallDepth = 5;

// Sums over queries.
struct RetrievalCounts {
  std::int64_t queries = 0;
  std::array<std::int64_t, kRecallDepth> found{};  // [k - 1]: a right tool among the first k
  double reciprocal_ranks = 0;                     // of the first right tool

  // Share of queries with a right tool among the first k.
  double recall(std::size_t k) const;
  double mean_reciprocal_rank() const;

  // `right`: indices of the tools that are called. A query without one is not counted.
  void add(std::span<const RankedTool> ranking, std::span<const std::size_t> right);
};

// Ranks each case's own tools for its query. `progress` is told how many cases are done.
RetrievalCounts evaluate_retrieval(const Engine& engine, const Tokenizer& tokenizer,
                                   std::span<const EvalCase> cases,
                                   const RetrieveOptions& options = {},
                                   const std::function<void(std::size_t done)>& progress = {});

}  // namespace needle
