// When a predicted answer is right (specification, section 9). The reference has three evaluators
// that disagree in detail; here one evaluator takes the details as rules.
//
// Calls are compared as canonical JSON: keys sorted at every depth, order of calls ignored, so 5,
// 5.0 and "5" all differ. Nothing a model writes makes this throw: a call whose name is no text or
// whose arguments are no object is a wrong call.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

struct ScoringRules {
  bool snake_case_names = false;      // names of tools, references and predictions in snake_case
  bool loose_values = false;          // loosen_value on every argument
  bool default_arguments = false;     // a call without `arguments` has {}; else null, unlike {}
  bool empty_text_is_no_call = true;  // an empty text counts as []; else it is a parse error
  bool literal_no_call = false;       // of the answers without a call only "[]" and "" are exact
  bool schema_keys = true;            // of JSON Schema tools the keys of `properties` are known
  bool with_calls_only = false;       // rows whose reference has no call are left out
  bool terse_reasons = false;         // the wording of the reference's training evaluator
};

// Ours, shown side by side.
inline constexpr ScoringRules kStrictRules{};
inline constexpr ScoringRules kLooseRules{.snake_case_names = true,
                                          .loose_values = true,
                                          .default_arguments = true,
                                          .empty_text_is_no_call = false};
// The reference's, for comparison with published figures.
inline constexpr ScoringRules kReferenceTrainingRules{
    .literal_no_call = true, .schema_keys = false, .terse_reasons = true};
inline constexpr ScoringRules kReferenceBenchmarkRules{.snake_case_names = true,
                                                       .loose_values = true,
                                                       .default_arguments = true,
                                                       .empty_text_is_no_call = false,
                                                       .schema_keys = false};
inline constexpr ScoringRules kReferenceFinetuneRules{.empty_text_is_no_call = false,
                                                      .literal_no_call = true,
                                                      .schema_keys = false,
                                                      .with_calls_only = true};

// Reference calls of one tool, and how many of them have an equal predicted call.
struct ToolScore {
  std::int64_t correct = 0;
  std::int64_t total = 0;
  bool operator==(const ToolScore&) const = default;
};

struct MatchCounts {  // of sets: a repeated call counts once
  std::int64_t matched = 0;
  std::int64_t wrong = 0;   // predicted, not in the reference
  std::int64_t missed = 0;  // in the reference, not predicted

  double precision() const;
  double recall() const;
  double f1() const;  // 2TP / (2TP + FP + FN)
  MatchCounts& operator+=(const MatchCounts& other);
};

struct HitCounts {  // `hits` of `total`; a ratio of nothing is 0
  std::int64_t hits = 0;
  std::int64_t total = 0;

  double ratio() const;
  void add(bool hit);
  HitCounts& operator+=(const HitCounts& other);
};

// Sums over examples, so that any group of them can be added up. `total` of the first five is the
// number of examples.
struct CallCounts {
  HitCounts parsed;             // the text is JSON
  HitCounts exact;              // same calls, repetitions included
  HitCounts right_tools;        // parsed, and the same set of names
  HitCounts empty_references;   // rows whose right answer is no call
  HitCounts empty_predictions;  // no call was written
  HitCounts false_calls;        // of the rows without a call: something is called
  MatchCounts names;            // sets of names
  MatchCounts calls;            // sets of name and arguments
  HitCounts arguments;          // of the predicted calls with a right name: arguments are right too
  HitCounts hallucinated_keys;  // of the predicted keys: unknown to the tool
  HitCounts missed_keys;        // of the reference's keys (first call of that name): absent
  HitCounts values;             // of the shared keys: equal value
  std::map<std::string, ToolScore> tools;

  std::int64_t examples() const { return exact.total; }
  CallCounts& operator+=(const CallCounts& other);
};

struct ScoredAnswer {
  CallCounts counts;  // of this one example; nothing if the rules leave it out
  bool exact = false;
  std::vector<std::string> reasons;  // why it is not exact, sorted; empty if it is
};

// All three are JSON texts; tools that are not a JSON array declare nothing.
ScoredAnswer score_answer(std::string_view prediction, std::string_view reference,
                          std::string_view tools, const ScoringRules& rules);

}  // namespace needle
