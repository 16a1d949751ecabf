#include "needle/server/metrics.h"

#include "needle/core/format.h"

namespace needle {
namespace {

std::string single(std::string_view name, std::string_view type, std::string_view help,
                   std::int64_t value) {
  return format("# HELP {} {}\n# TYPE {} {}\n{} {}\n", name, help, name, type, name, value);
}

}  // namespace

void Metrics::count_reply(std::string_view route, int status, double seconds) {
  const std::lock_guard lock(mutex_);
  ++replies_[{std::string(route), status}];
  Histogram& histogram = seconds_[std::string(route)];
  ++histogram.count;
  histogram.sum += seconds;
  for (std::size_t i = 0; i < kBounds.size(); ++i) {
    histogram.at_most[i] += seconds <= kBounds[i] ? 1 : 0;
  }
}

void Metrics::count_tokens(std::int64_t prompt, std::int64_t completion) {
  const std::lock_guard lock(mutex_);
  prompt_tokens_ += prompt;
  completion_tokens_ += completion;
}

void Metrics::count_cancelled() {
  const std::lock_guard lock(mutex_);
  ++cancelled_;
}

std::string Metrics::text(const Gauges& gauges) const {
  const std::lock_guard lock(mutex_);
  std::string out =
      "# HELP needle_requests_total Replies by route and status.\n"
      "# TYPE needle_requests_total counter\n";
  for (const auto& [key, count] : replies_) {
    out += format("needle_requests_total{{route=\"{}\",status=\"{}\"}} {}\n", key.first, key.second,
                  count);
  }
  out +=
      "# HELP needle_request_seconds From the whole request to the whole reply.\n"
      "# TYPE needle_request_seconds histogram\n";
  for (const auto& [route, histogram] : seconds_) {
    for (std::size_t i = 0; i < kBounds.size(); ++i) {
      out += format("needle_request_seconds_bucket{{route=\"{}\",le=\"{}\"}} {}\n", route,
                    kBounds[i], histogram.at_most[i]);
    }
    out += format(
        "needle_request_seconds_bucket{{route=\"{}\",le=\"+Inf\"}} {}\n"
        "needle_request_seconds_sum{{route=\"{}\"}} {}\n"
        "needle_request_seconds_count{{route=\"{}\"}} {}\n",
        route, histogram.count, route, histogram.sum, route, histogram.count);
  }
  out += single("needle_prompt_tokens_total", "counter", "Tokens of prompts.", prompt_tokens_);
  out +=
      single("needle_completion_tokens_total", "counter", "Tokens of answers.", completion_tokens_);
  out +=
      single("needle_cancelled_total", "counter", "Requests whose client went away.", cancelled_);
  out += single("needle_running", "gauge", "Requests that a model works on.",
                static_cast<std::int64_t>(gauges.running));
  out += single("needle_waiting", "gauge", "Requests in the queue.",
                static_cast<std::int64_t>(gauges.waiting));
  out += single("needle_models", "gauge", "Models that can be asked.",
                static_cast<std::int64_t>(gauges.models));
  return out;
}

}  // namespace needle
