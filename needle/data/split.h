// Training, validation and test examples per tool (specification, section 10).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/data/example.h"

namespace needle {

inline constexpr std::string_view kNoTool = "no-tool";  // rows whose answer calls nothing

struct SplitConfig {
  std::int64_t validation_per_tool = 10;
  std::int64_t test_per_tool = 10;
  std::int64_t few_examples = 120;
  std::uint64_t seed = 42;
  bool reference_sizes = false;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("validation_per_tool", self.validation_per_tool, "Validation examples a tool, at most");
    visit("test_per_tool", self.test_per_tool, "Test examples a tool, at most");
    visit("few_examples", self.few_examples, "Warn about tools with fewer examples");
    visit("seed", self.seed, "Which examples go where");
    visit("reference_sizes", self.reference_sizes,
          "Sizes as in the reference, where a tool with 20 examples leaves none for training");
  }
};

struct SplitSizes {
  std::int64_t train = 0;
  std::int64_t validation = 0;
  std::int64_t test = 0;
  bool operator==(const SplitSizes&) const = default;
};

// Of a tool with `count` examples. One: test alone; two: one test, one validation; else test = a
// third and validation = a third of the rest, rounded down, at least 1 and at most the configured
// numbers. So three examples or more always train, and from 40 on the sizes are the reference's 10
// and 10 (which it takes from 20 examples on).
SplitSizes split_sizes(std::int64_t count, const SplitConfig& config = {});

struct ToolShare {
  std::string tool;  // or kNoTool
  std::int64_t examples = 0;
  SplitSizes sizes;
};

struct Split {
  std::vector<std::int64_t> train;  // indices into the examples, ascending
  std::vector<std::int64_t> validation;
  std::vector<std::int64_t> test;
  std::vector<ToolShare> tools;  // most examples first
  std::vector<std::string>
      warnings;  // tools with few examples, and a data set too small to hold anything back
};

// Splits by primary tool: the first one of the answer. If no tool has the three examples that leave
// something to train on, all rows train and the held-out rows are among them, with a warning (not
// with reference_sizes). Deterministic by seed.
Split split_by_tool(std::span<const CallExample> examples, const SplitConfig& config = {});

// The name of the first call, or kNoTool.
std::string primary_tool(const CallExample& example);

std::vector<CallExample> select_examples(std::span<const CallExample> examples,
                                         std::span<const std::int64_t> indices);

}  // namespace needle
