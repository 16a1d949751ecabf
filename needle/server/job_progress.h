// How far a training is, read from the JSON lines of `needle-train finetune --json`.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/core/json.h"

namespace needle {

// Not thread-safe. Lines that are no records are left out: a child that was killed leaves half a
// line behind.
class JobProgress {
 public:
  // Reads what `path` has gained since the last call; a missing file has gained nothing.
  void read(const std::filesystem::path& path);

  // {"step","total_steps","epoch","loss","tokens_per_second","seconds_left","curve":[[step,loss]],
  // "validation":[{"step",...}],"base","finetuned","finished"}. seconds_left: null before the
  // first step. The curve has at most kCurvePoints points, each the mean of its stretch.
  Json to_json() const;
  bool finished() const { return finished_; }  // the summary is there

  static constexpr std::size_t kCurvePoints = 300;

 private:
  void take(std::string_view line);
  void take_step(const Json& record);

  std::uint64_t offset_ = 0;
  std::string rest_;  // of a line that is not complete
  std::vector<std::pair<std::int64_t, double>> curve_;
  Json validation_ = Json::array();
  Json last_;  // train record
  Json base_;
  Json finetuned_;
  bool finished_ = false;
};

}  // namespace needle
