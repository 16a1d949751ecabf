// The answers that were wrong, and why: a few in full, all of them counted.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "needle/eval/eval_case.h"

namespace needle {

struct CallFailure {
  std::size_t index = 0;  // of the case
  std::string query;
  std::string reference;
  std::string prediction;
  std::vector<std::string> reasons;
};

class FailureLog {
 public:
  explicit FailureLog(std::size_t keep = 50) : keep_(keep) {}

  void add(std::size_t index, const EvalCase& eval_case, std::string_view prediction,
           const std::vector<std::string>& reasons);

  const std::vector<CallFailure>& kept() const { return kept_; }  // the first ones
  // Failures by kind of reason ("wrong_tools", "value_mismatch"): a failure with two kinds counts
  // under both.
  const std::map<std::string, std::int64_t>& by_kind() const { return by_kind_; }

 private:
  std::size_t keep_;
  std::vector<CallFailure> kept_;
  std::map<std::string, std::int64_t> by_kind_;
};

}  // namespace needle
