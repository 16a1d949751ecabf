#include "needle/data/split.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "needle/calls/json_value.h"
#include "needle/core/error.h"
#include "needle/core/format.h"
#include "needle/core/random.h"

namespace needle {
namespace {

std::vector<std::int64_t> all_indices(std::size_t count) {
  std::vector<std::int64_t> indices(count);
  for (std::size_t i = 0; i < count; ++i) {
    indices[i] = static_cast<std::int64_t>(i);
  }
  return indices;
}

void move_to(std::vector<std::int64_t>& target, std::span<const std::int64_t> members,
             std::int64_t begin, std::int64_t count) {
  const auto part =
      members.subspan(static_cast<std::size_t>(begin), static_cast<std::size_t>(count));
  target.insert(target.end(), part.begin(), part.end());
}

void warn_about_tools(Split& split, const SplitConfig& config) {
  for (const ToolShare& share : split.tools) {
    if (share.tool == kNoTool) {
      continue;
    }
    if (share.sizes.train == 0) {
      split.warnings.push_back(
          format("tool \"{}\" has {} example{}: none is left for training; add more", share.tool,
                 share.examples, share.examples == 1 ? "" : "s"));
    } else if (share.examples < config.few_examples) {
      split.warnings.push_back(format("tool \"{}\" has {} examples; {} or more are recommended",
                                      share.tool, share.examples, config.few_examples));
    }
  }
}

}  // namespace

SplitSizes split_sizes(std::int64_t count, const SplitConfig& config) {
  NEEDLE_CHECK(count >= 0, "{} examples", count);
  NEEDLE_CHECK(config.validation_per_tool >= 0 && config.test_per_tool >= 0,
               "validation_per_tool is {}, test_per_tool is {}", config.validation_per_tool,
               config.test_per_tool);
  SplitSizes sizes;
  if (config.reference_sizes && count >= config.validation_per_tool + config.test_per_tool) {
    sizes.test = config.test_per_tool;
    sizes.validation = config.validation_per_tool;
    sizes.train = count - sizes.validation - sizes.test;
    return sizes;
  }
  sizes.test = count < 3 ? std::min<std::int64_t>(count, 1) : count / 3;
  if (!config.reference_sizes) {
    sizes.test = std::min(sizes.test, config.test_per_tool);
  }
  const std::int64_t rest = count - sizes.test;
  sizes.validation =
      count < 3 ? count - std::min<std::int64_t>(count, 1) : std::max<std::int64_t>(rest / 3, 1);
  if (!config.reference_sizes) {
    sizes.validation = std::min(sizes.validation, config.validation_per_tool);
  }
  sizes.train = count - sizes.validation - sizes.test;
  return sizes;
}

std::string primary_tool(const CallExample& example) {
  const JsonParseResult parsed = parse_json_value(example.answers);
  if (parsed.value) {
    const JsonValue& answer = *parsed.value;
    const JsonValue* call = &answer;
    if (answer.is_array()) {
      call = answer.items().empty() ? nullptr : &answer.items().front();
    }
    const JsonValue* const name = call != nullptr ? call->find("name") : nullptr;
    if (name != nullptr && name->is_string() && !name->as_string().empty()) {
      return name->as_string();
    }
  }
  return std::string(kNoTool);
}

Split split_by_tool(std::span<const CallExample> examples, const SplitConfig& config) {
  std::map<std::string, std::vector<std::int64_t>> members;
  for (std::size_t i = 0; i < examples.size(); ++i) {
    members[primary_tool(examples[i])].push_back(static_cast<std::int64_t>(i));
  }
  Split split;
  std::uint64_t number = 0;
  for (auto& [tool, indices] : members) {
    Random random(derive_seed(config.seed, "split", number++));
    random.shuffle(std::span<std::int64_t>(indices));
    const auto count = static_cast<std::int64_t>(indices.size());
    const SplitSizes sizes = split_sizes(count, config);
    move_to(split.test, indices, 0, sizes.test);
    move_to(split.validation, indices, sizes.test, sizes.validation);
    move_to(split.train, indices, sizes.test + sizes.validation, sizes.train);
    split.tools.push_back({.tool = tool, .examples = count, .sizes = sizes});
  }
  std::stable_sort(split.tools.begin(), split.tools.end(),
                   [](const ToolShare& a, const ToolShare& b) { return a.examples > b.examples; });
  warn_about_tools(split, config);

  if (split.train.empty() && !examples.empty() && !config.reference_sizes) {
    split.train = all_indices(examples.size());
    if (split.validation.empty()) {
      split.validation = split.test;
    }
    split.warnings.push_back(
        format("{} examples are too few to hold any back: all of them train, so validation and "
               "test figures tell how well they were learned by heart",
               examples.size()));
  }
  for (std::vector<std::int64_t>* part : {&split.train, &split.validation, &split.test}) {
    std::sort(part->begin(), part->end());
  }
  return split;
}

std::vector<CallExample> select_examples(std::span<const CallExample> examples,
                                         std::span<const std::int64_t> indices) {
  std::vector<CallExample> selected;
  selected.reserve(indices.size());
  for (const std::int64_t index : indices) {
    NEEDLE_CHECK(index >= 0 && static_cast<std::size_t>(index) < examples.size(),
                 "index {} of {} examples", index, examples.size());
    selected.push_back(examples[static_cast<std::size_t>(index)]);
  }
  return selected;
}

}  // namespace needle
