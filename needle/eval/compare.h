// Two sets of answers to the same cases: how often they agree, and whether one is better.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

#include "needle/eval/evaluate.h"

namespace needle {

// What is kept of an answer, one JSON object a line.
struct SavedPrediction {
  std::string query;
  std::string reference;
  std::string text;
  std::vector<TokenId> ids;
  bool exact = false;  // kStrictRules
};

std::vector<SavedPrediction> saved_predictions(std::span<const EvalCase> cases,
                                               const Predictions& predictions);
void write_predictions(const std::filesystem::path& path,
                       std::span<const SavedPrediction> predictions);
// Throws FormatError naming file and line.
std::vector<SavedPrediction> read_predictions(const std::filesystem::path& path);

struct Comparison {
  std::int64_t cases = 0;
  std::int64_t same_tokens = 0;  // token for token
  std::int64_t same_text = 0;
  std::int64_t exact_a = 0;
  std::int64_t exact_b = 0;
  std::int64_t only_a = 0;  // exact in a, not in b
  std::int64_t only_b = 0;
  // Exact two-sided McNemar test: how likely so uneven a split of the disagreements is by chance.
  double p_value = 1;
  // exact match of b minus that of a, with a 95 % interval (paired bootstrap, seeded).
  double difference = 0;
  double difference_low = 0;
  double difference_high = 0;
  std::vector<std::size_t> disagreements;  // indices of different token sequences
};

// Throws DataError if the two are not answers to the same queries in the same order.
Comparison compare_predictions(std::span<const SavedPrediction> a,
                               std::span<const SavedPrediction> b, std::uint64_t seed = 42);

}  // namespace needle
