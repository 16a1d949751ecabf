#include "needle/decode/confidence.h"

#include <algorithm>
#include <cmath>
#include <utility>

namespace needle {
namespace {

double probability_of(TextRange range, std::span<const std::size_t> ends,
                      std::span<const TokenStep> steps) {
  double log_probability = 0;
  std::size_t begin = 0;
  for (std::size_t i = 0; i < std::min(ends.size(), steps.size()); ++i) {
    if (begin < range.end && ends[i] > range.begin) {
      log_probability += steps[i].log_probability;
    }
    begin = ends[i];
  }
  return std::exp(log_probability);
}

}  // namespace

std::vector<std::size_t> token_ends(const Tokenizer& tokenizer, std::span<const TokenId> ids) {
  const std::string whole = tokenizer.decode(ids);
  std::vector<std::size_t> ends;
  ends.reserve(ids.size());
  std::size_t last = 0;
  for (std::size_t count = 1; count <= ids.size(); ++count) {
    const std::string text = tokenizer.decode(ids.first(count));
    // Bytes of a character that is not complete yet decode to something else.
    const auto same = std::ranges::mismatch(text, whole).in1 - text.begin();
    std::size_t end = static_cast<std::size_t>(same);
    while (end < whole.size() && end > 0 &&
           (static_cast<unsigned char>(whole[end]) & 0xC0U) == 0x80U) {
      --end;
    }
    last = std::max(last, end);
    ends.push_back(last);
  }
  return ends;
}

AnswerConfidence answer_confidence(std::string_view text, std::span<const std::size_t> ends,
                                   const GeneratedTokens& generated) {
  AnswerConfidence confidence;
  double log_probability = 0;
  for (const TokenStep& step : generated.steps) {
    log_probability += step.log_probability;
    if (step.outside) {
      confidence.outside = std::max(confidence.outside.value_or(0), *step.outside);
    }
  }
  confidence.probability = std::exp(log_probability);
  confidence.no_call = std::exp(generated.watched_log_probability);
  const std::string_view marker = kToolCallPiece;
  const std::size_t skipped = text.starts_with(marker) ? marker.size() : 0;
  const auto calls = locate_calls(text.substr(skipped));
  if (!calls) {
    return confidence;
  }
  const auto probability = [&](TextRange range) {
    return probability_of({range.begin + skipped, range.end + skipped}, ends, generated.steps);
  };
  for (const CallSpan& call : *calls) {
    CallConfidence of_call{.name = call.name,
                           .probability = probability(call.all),
                           .name_probability = probability(call.name_text)};
    for (const ArgumentSpan& argument : call.arguments) {
      of_call.arguments.push_back({.name = argument.name,
                                   .probability = probability(argument.value),
                                   .value = argument.value});
    }
    confidence.calls.push_back(std::move(of_call));
  }
  return confidence;
}

void calibrate(const Calibration& calibration, AnswerConfidence& confidence) {
  confidence.calibrated = calibrated(calibration.answer, confidence.probability);
  for (CallConfidence& call : confidence.calls) {
    call.calibrated = calibrated(calibration.call, call.probability);
  }
}

}  // namespace needle
