#include "needle/eval/compare.h"

#include <algorithm>
#include <cmath>
#include <string_view>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/core/random.h"

namespace needle {
namespace {

// Two-sided: twice the chance that a fair coin shows the rarer side at most min(a, b) times.
double mcnemar_p_value(std::int64_t a, std::int64_t b) {
  const auto n = static_cast<double>(a + b);
  double tail = 0;
  for (std::int64_t k = 0; k <= std::min(a, b); ++k) {
    const auto x = static_cast<double>(k);
    tail += std::exp(std::lgamma(n + 1) - std::lgamma(x + 1) - std::lgamma(n - x + 1) -
                     n * std::log(2.0));
  }
  return std::min(1.0, 2 * tail);
}

}  // namespace

std::vector<SavedPrediction> saved_predictions(std::span<const EvalCase> cases,
                                               const Predictions& predictions) {
  NEEDLE_CHECK(cases.size() == predictions.items.size(), "{} predictions for {} cases",
               predictions.items.size(), cases.size());
  std::vector<SavedPrediction> saved;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    const Prediction& prediction = predictions.items[i];
    saved.push_back(
        {.query = cases[i].query,
         .reference = cases[i].answers,
         .text = prediction.text,
         .ids = prediction.ids,
         .exact =
             score_answer(prediction.text, cases[i].answers, cases[i].tools, kStrictRules).exact});
  }
  return saved;
}

void write_predictions(const std::filesystem::path& path,
                       std::span<const SavedPrediction> predictions) {
  AtomicFileWriter writer(path);
  for (const SavedPrediction& prediction : predictions) {
    const Json row = {{"query", prediction.query},
                      {"reference", prediction.reference},
                      {"text", prediction.text},
                      {"ids", prediction.ids},
                      {"exact", prediction.exact}};
    writer.write(row.dump(-1, ' ', false, Json::error_handler_t::replace) + "\n");
  }
  writer.commit();
}

std::vector<SavedPrediction> read_predictions(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  std::vector<SavedPrediction> predictions;
  std::size_t line_number = 0;
  for (std::size_t begin = 0; begin < content.size();) {
    const std::size_t end = std::min(content.find('\n', begin), content.size());
    const std::string_view line = std::string_view(content).substr(begin, end - begin);
    const std::string where = format("{}:{}", path, ++line_number);
    begin = end + 1;
    if (line.find_first_not_of(" \t\r") == std::string_view::npos) {
      continue;
    }
    const Json row = parse_json(line, where);
    try {
      predictions.push_back({.query = row.at("query").get<std::string>(),
                             .reference = row.at("reference").get<std::string>(),
                             .text = row.at("text").get<std::string>(),
                             .ids = row.at("ids").get<std::vector<TokenId>>(),
                             .exact = row.at("exact").get<bool>()});
    } catch (const Json::exception& error) {
      throw FormatError(
          format("{}: not a line of saved predictions ({}); make the file with needle-eval calls "
                 "--predictions",
                 where, error.what()));
    }
  }
  return predictions;
}

Comparison compare_predictions(std::span<const SavedPrediction> a,
                               std::span<const SavedPrediction> b, std::uint64_t seed) {
  if (a.size() != b.size()) {
    throw DataError(format("{} answers against {}: make both with the same data and --limit",
                           a.size(), b.size()));
  }
  Comparison comparison;
  comparison.cases = static_cast<std::int64_t>(a.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    if (a[i].query != b[i].query || a[i].reference != b[i].reference) {
      throw DataError(format(
          "answer {} is to \"{}\" in one file and to \"{}\" in the other: make both with the "
          "same data",
          i + 1, a[i].query, b[i].query));
    }
    comparison.same_tokens += a[i].ids == b[i].ids ? 1 : 0;
    comparison.same_text += a[i].text == b[i].text ? 1 : 0;
    comparison.exact_a += a[i].exact ? 1 : 0;
    comparison.exact_b += b[i].exact ? 1 : 0;
    comparison.only_a += a[i].exact && !b[i].exact ? 1 : 0;
    comparison.only_b += b[i].exact && !a[i].exact ? 1 : 0;
    if (a[i].ids != b[i].ids) {
      comparison.disagreements.push_back(i);
    }
  }
  if (a.empty()) {
    return comparison;
  }
  comparison.p_value = mcnemar_p_value(comparison.only_a, comparison.only_b);
  const auto cases = static_cast<double>(a.size());
  comparison.difference = static_cast<double>(comparison.only_b - comparison.only_a) / cases;

  constexpr std::size_t kResamples = 2000;
  Random random(derive_seed(seed, "paired bootstrap"));
  std::vector<double> differences;
  for (std::size_t sample = 0; sample < kResamples; ++sample) {
    std::int64_t sum = 0;
    for (std::size_t draw = 0; draw < a.size(); ++draw) {
      const std::size_t i = random.below(static_cast<std::uint32_t>(a.size()));
      sum += (b[i].exact ? 1 : 0) - (a[i].exact ? 1 : 0);
    }
    differences.push_back(static_cast<double>(sum) / cases);
  }
  std::sort(differences.begin(), differences.end());
  comparison.difference_low = differences[kResamples * 25 / 1000];
  comparison.difference_high = differences[kResamples * 975 / 1000 - 1];
  return comparison;
}

}  // namespace needle
