// How the ranks of a data-parallel run share the parameters out (data_parallel.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "needle/model/needle.h"

namespace needle {

// Parameters that travel together, and the rank that updates them.
struct BucketPlan {
  std::vector<std::string> names;
  std::int64_t elements = 0;
  std::int64_t owner = 0;
};
struct ParameterCost {
  std::string name;
  std::int64_t elements = 0;
  double update_cost = 0.0;  // any unit
};

// All parameters as the backward pass finishes them; those of `muon_names` are updated by Muon.
std::vector<ParameterCost> backward_order(const Needle& model,
                                          const std::vector<std::string>& muon_names);

// Cuts them into buckets, in their order, and gives each an owner. The same on every rank.
std::vector<BucketPlan> plan_buckets(const std::vector<ParameterCost>& backward_order,
                                     std::int64_t world);

}  // namespace needle
