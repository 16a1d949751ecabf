#include "needle/train/bucket_plan.h"

#include <algorithm>
#include <set>
#include <string_view>

namespace needle {
namespace {

// Small enough that the first bucket leaves early and every rank owns several, large enough that
// latency does not count.
constexpr std::int64_t kLargestBucket = std::int64_t{1} << 20;
constexpr std::int64_t kSmallestBucket = std::int64_t{1} << 14;
constexpr std::int64_t kBucketsPerRank = 8;

// What no text loss reaches: only retrieval steps have gradients for it, so it travels last.
bool is_late(std::string_view name) {
  return name.starts_with("contrastive_head.") || name == "log_temp";
}

// Newton-Schulz of a [r, c] kernel takes 5 * 2 (r r c + r r r + r r c) operations, r the shorter
// side; AdamW some hundred a value, since it waits for memory.
double update_cost(const torch::Tensor& parameter, bool muon) {
  const auto elements = static_cast<double>(parameter.numel());
  if (!muon) {
    return 500.0 * elements;
  }
  const auto shorter = static_cast<double>(std::min(parameter.size(0), parameter.size(1)));
  return 10.0 * shorter * (2.0 * elements + shorter * shorter);
}

}  // namespace

std::vector<ParameterCost> backward_order(const Needle& model,
                                          const std::vector<std::string>& muon_names) {
  const std::set<std::string_view> muon(muon_names.begin(), muon_names.end());
  std::vector<ParameterCost> order;
  for (const auto& item : model->named_parameters()) {
    order.push_back({.name = item.key(),
                     .elements = item.value().numel(),
                     .update_cost = update_cost(item.value(), muon.contains(item.key()))});
  }
  std::reverse(order.begin(), order.end());
  std::stable_partition(order.begin(), order.end(),
                        [](const ParameterCost& one) { return !is_late(one.name); });
  return order;
}

std::vector<BucketPlan> plan_buckets(const std::vector<ParameterCost>& backward_order,
                                     std::int64_t world) {
  std::int64_t total = 0;
  for (const ParameterCost& one : backward_order) {
    total += one.elements;
  }
  const std::int64_t limit =
      std::clamp(total / (kBucketsPerRank * world), kSmallestBucket, kLargestBucket);
  std::vector<BucketPlan> buckets;
  std::vector<double> costs;
  for (const ParameterCost& one : backward_order) {
    const bool starts_late =
        is_late(one.name) && !buckets.empty() && !is_late(buckets.back().names.front());
    if (buckets.empty() || starts_late || buckets.back().elements + one.elements > limit) {
      buckets.emplace_back();
      costs.push_back(0.0);
    }
    buckets.back().names.push_back(one.name);
    buckets.back().elements += one.elements;
    costs.back() += one.update_cost;
  }
  // The dearest first, each to the rank with the least to do.
  std::vector<std::size_t> by_cost(buckets.size());
  for (std::size_t i = 0; i < by_cost.size(); ++i) {
    by_cost[i] = i;
  }
  std::stable_sort(by_cost.begin(), by_cost.end(),
                   [&](std::size_t a, std::size_t b) { return costs[a] > costs[b]; });
  std::vector<double> load(static_cast<std::size_t>(world), 0.0);
  for (const std::size_t i : by_cost) {
    const auto owner = std::min_element(load.begin(), load.end());
    *owner += costs[i];
    buckets[i].owner = owner - load.begin();
  }
  return buckets;
}

}  // namespace needle
