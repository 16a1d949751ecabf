#include "needle/server/job_progress.h"

#include <algorithm>
#include <fstream>
#include <iterator>

namespace needle {
namespace {

Json field(const Json& record, const char* name) {
  return record.is_object() && record.contains(name) ? record[name] : Json(nullptr);
}

double number(const Json& record, const char* name) {
  const Json value = field(record, name);
  return value.is_number() ? value.get<double>() : 0;
}

// Removes what a resumed run does again.
void cut_from(Json& records, std::int64_t step) {
  while (!records.empty() && number(records.back(), "step") >= static_cast<double>(step)) {
    records.erase(records.size() - 1);
  }
}

}  // namespace

void JobProgress::read(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file.seekg(static_cast<std::streamoff>(offset_))) {
    return;
  }
  std::string gained{std::istreambuf_iterator<char>(file), {}};
  offset_ += gained.size();
  rest_ += gained;
  std::size_t begin = 0;
  for (std::size_t end = 0; (end = rest_.find('\n', begin)) != std::string::npos; begin = end + 1) {
    take(std::string_view(rest_).substr(begin, end - begin));
  }
  rest_.erase(0, begin);
}

void JobProgress::take(std::string_view line) {
  Json record = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!record.is_object()) {
    return;
  }
  const Json kind = field(record, "kind");
  if (kind == "train") {
    take_step(record);
  } else if (kind == "validation") {
    cut_from(validation_, static_cast<std::int64_t>(number(record, "step")));
    validation_.push_back(std::move(record));
  } else if (kind == "evaluation") {
    (field(record, "model") == "base" ? base_ : finetuned_) = field(record, "report");
  } else if (kind == "summary") {
    finished_ = true;
  }
}

void JobProgress::take_step(const Json& record) {
  const auto step = static_cast<std::int64_t>(number(record, "step"));
  while (!curve_.empty() && curve_.back().first >= step) {
    curve_.pop_back();
  }
  if (field(record, "loss").is_number()) {
    curve_.emplace_back(step, number(record, "loss"));
  }
  last_ = record;
}

Json JobProgress::to_json() const {
  Json curve = Json::array();
  const std::size_t stretch = (curve_.size() + kCurvePoints - 1) / kCurvePoints;
  for (std::size_t begin = 0; begin < curve_.size(); begin += stretch) {
    const std::size_t end = std::min(begin + stretch, curve_.size());
    double sum = 0;
    for (std::size_t i = begin; i < end; ++i) {
      sum += curve_[i].second;
    }
    curve.push_back({curve_[end - 1].first, sum / static_cast<double>(end - begin)});
  }
  // A resumed run counts its seconds on, as its steps.
  Json left = nullptr;
  const double step = number(last_, "step");
  const double total = number(last_, "total_steps");
  if (step > 0 && total > 0) {
    left = number(last_, "seconds") / step * std::max(0.0, total - step);
  }
  return {{"step", field(last_, "step")},
          {"total_steps", field(last_, "total_steps")},
          {"epoch", field(last_, "epoch")},
          {"loss", field(last_, "loss")},
          {"tokens_per_second", field(last_, "tokens_per_second")},
          {"seconds_left", std::move(left)},
          {"curve", std::move(curve)},
          {"validation", validation_},
          {"base", base_},
          {"finetuned", finetuned_},
          {"finished", finished_}};
}

}  // namespace needle
