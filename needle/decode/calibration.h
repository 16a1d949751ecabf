// From the model's own probabilities to how often such answers are right: a straight line on the
// log-odds (Platt 1999), fitted to data by needle/eval/calibrate.h and kept in the weights file.
#pragma once

#include <cstdint>
#include <string>

#include "needle/core/fields.h"

namespace needle {

// P(right) = 1 / (1 + exp(-(slope * log(p / (1 - p)) + intercept))). Never falls as p rises.
struct PlattScale {
  double slope = 1;  // at least 0
  double intercept = 0;
  std::int64_t examples = 0;  // that it was fitted to; 0: not fitted

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("slope", self.slope, "Of the line on the log-odds");
    visit("intercept", self.intercept, "Of the line on the log-odds");
    visit("examples", self.examples, "Answers or calls that it was fitted to");
  }
  friend bool operator==(const PlattScale&, const PlattScale&) = default;
};

// The section "calibration" of a weights file.
struct Calibration {
  PlattScale answer;  // of AnswerConfidence::probability: the whole answer is right
  PlattScale call;    // of CallConfidence::probability: the call is one of the right ones
  std::string data;   // what it was fitted to, for people
  std::string constrain = "grammar";  // how the answers were constrained

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("answer", self.answer, "Of whole answers");
    visit("call", self.call, "Of single calls");
    visit("data", self.data, "File that it was fitted to");
    visit("constrain", self.constrain, "How the answers were constrained");
  }
  friend bool operator==(const Calibration&, const Calibration&) = default;
};

// Log-odds of a probability, kept within those of 1e-9 and 1 - 1e-9.
double log_odds(double probability);

// In 0..1; the probability itself if the scale was never fitted.
double calibrated(const PlattScale& scale, double probability);

}  // namespace needle
