#include "needle/eval/retrieval_metrics.h"

#include <algorithm>
#include <set>
#include <string>

#include "needle/calls/json_value.h"
#include "needle/core/error.h"

namespace needle {
namespace {

// Texts of the tools, and which of them the answer calls.
struct LabelledTools {
  std::vector<std::string> texts;
  std::vector<std::size_t> called;
};

std::string name_of(const JsonValue& item) {
  const JsonValue* name = item.find("name");
  return name != nullptr && name->is_string() ? name->as_string() : "";
}

LabelledTools labelled_tools(const EvalCase& eval_case, JsonEscapes escapes) {
  LabelledTools labelled;
  const auto tools = parse_json_value(eval_case.tools).value;
  const auto answers = parse_json_value(eval_case.answers).value;
  if (!tools || !tools->is_array() || !answers || !answers->is_array()) {
    return labelled;
  }
  std::set<std::string> called;
  for (const JsonValue& call : answers->items()) {
    called.insert(name_of(call));
  }
  called.erase("");
  for (const JsonValue& tool : tools->items()) {
    if (called.contains(name_of(tool))) {
      labelled.called.push_back(labelled.texts.size());
    }
    labelled.texts.push_back(write_compact(tool, escapes));
  }
  return labelled;
}

}  // namespace

double RetrievalCounts::recall(std::size_t k) const {
  NEEDLE_CHECK(k >= 1 && k <= kRecallDepth, "recall@{} is not counted, only 1 to {}", k,
               kRecallDepth);
  return static_cast<double>(found[k - 1]) /
         static_cast<double>(std::max<std::int64_t>(1, queries));
}

double RetrievalCounts::mean_reciprocal_rank() const {
  return reciprocal_ranks / static_cast<double>(std::max<std::int64_t>(1, queries));
}

void RetrievalCounts::add(std::span<const RankedTool> ranking, std::span<const std::size_t> right) {
  if (right.empty()) {
    return;
  }
  ++queries;
  for (std::size_t rank = 0; rank < ranking.size(); ++rank) {
    if (std::find(right.begin(), right.end(), ranking[rank].index) == right.end()) {
      continue;
    }
    for (std::size_t k = rank; k < kRecallDepth; ++k) {
      ++found[k];
    }
    reciprocal_ranks += 1.0 / static_cast<double>(rank + 1);
    return;
  }
}

RetrievalCounts evaluate_retrieval(const Engine& engine, const Tokenizer& tokenizer,
                                   std::span<const EvalCase> cases, const RetrieveOptions& options,
                                   const std::function<void(std::size_t done)>& progress) {
  RetrievalCounts counts;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const LabelledTools tools = labelled_tools(cases[i], options.json_escapes);
    if (!tools.called.empty()) {
      const ToolIndex index(engine, tokenizer, tools.texts, options);
      counts.add(index.rank(cases[i].query, tools.texts.size()), tools.called);
    }
    if (progress) {
      progress(i + 1);
    }
  }
  return counts;
}

}  // namespace needle
