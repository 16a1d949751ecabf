#include "needle/eval/failures.h"

#include <set>

namespace needle {

void FailureLog::add(std::size_t index, const EvalCase& eval_case, std::string_view prediction,
                     const std::vector<std::string>& reasons) {
  std::set<std::string> kinds;
  for (const std::string& reason : reasons) {
    kinds.insert(reason.substr(0, reason.find(':')));
  }
  for (const std::string& kind : kinds) {
    ++by_kind_[kind];
  }
  if (kept_.size() < keep_) {
    kept_.push_back({.index = index,
                     .query = eval_case.query,
                     .reference = eval_case.answers,
                     .prediction = std::string(prediction),
                     .reasons = reasons});
  }
}

}  // namespace needle
