// Counters of a running server, in the text format of Prometheus.
#pragma once

#include <array>
#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <utility>

namespace needle {

// Thread-safe.
class Metrics {
 public:
  void count_reply(std::string_view route, int status, double seconds);
  void count_tokens(std::int64_t prompt, std::int64_t completion);
  void count_cancelled();

  struct Gauges {
    std::size_t running = 0, waiting = 0, models = 0;
  };
  // Content type "text/plain; version=0.0.4".
  std::string text(const Gauges& gauges) const;

 private:
  static constexpr std::array<double, 12> kBounds = {.001, .0025, .005, .01, .025, .05,
                                                     .1,   .25,   .5,   1,   2.5,  10};  // seconds
  struct Histogram {
    std::array<std::uint64_t, kBounds.size()> at_most{};
    std::uint64_t count = 0;
    double sum = 0;
  };

  mutable std::mutex mutex_;
  std::map<std::pair<std::string, int>, std::uint64_t> replies_;  // by route and status
  std::map<std::string, Histogram, std::less<>> seconds_;         // by route
  std::int64_t prompt_tokens_ = 0, completion_tokens_ = 0, cancelled_ = 0;
};

}  // namespace needle
