// How sure the model is of an answer: token probabilities gathered by call and argument, and what
// they mean by a calibration, where the model has one.
#pragma once

#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/decode/calibration.h"
#include "needle/decode/call_spans.h"
#include "needle/decode/token_loop.h"
#include "needle/text/tokenizer.h"

namespace needle {

struct ArgumentConfidence {
  std::string name;
  double probability = 1;  // of the value, given all that stands before it
  TextRange value;         // bytes of the answer
};

struct CallConfidence {
  std::string name;
  double probability = 1;  // of the whole call
  double name_probability = 1;
  std::optional<double> calibrated;  // how often calls this sure are right
  std::vector<ArgumentConfidence> arguments;
};

struct AnswerConfidence {
  double probability = 1;            // of the whole answer, its end included
  std::optional<double> calibrated;  // how often answers this sure are right
  double no_call = 0;  // of the answer [] instead; an upper bound where nothing forces it
  std::optional<double> outside;      // kTrace: the largest share of a step that the mask cut off
  std::vector<CallConfidence> calls;  // empty too if the answer is no list of calls
};

// Byte at which each of the ids' text ends in their decoded text; only whole characters count.
std::vector<std::size_t> token_ends(const Tokenizer& tokenizer, std::span<const TokenId> ids);

// `text`: the generated text that `ends` speaks of. A token that reaches over a border counts on
// both sides of it. Forced tokens have probability 1.
AnswerConfidence answer_confidence(std::string_view text, std::span<const std::size_t> ends,
                                   const GeneratedTokens& generated);

// Fills the `calibrated` members.
void calibrate(const Calibration& calibration, AnswerConfidence& confidence);

}  // namespace needle
