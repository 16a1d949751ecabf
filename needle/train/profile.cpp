#include "needle/train/profile.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <map>
#include <mutex>
#include <tuple>

#include <ATen/record_function.h>

#include "needle/core/error.h"
#include "needle/train/device.h"

namespace needle {
namespace {

using ProfileClock = std::chrono::steady_clock;

struct OpenEvent : at::ObserverContext {
  ProfileClock::time_point start;
};

}  // namespace

struct Profile::Recorder {
  struct Event {
    std::string name;
    std::uint64_t thread = 0;
    std::int64_t start_ns = 0;
    std::int64_t end_ns = 0;
  };

  std::mutex mutex;
  ProfileClock::time_point origin = ProfileClock::now();
  std::vector<Event> events;

  std::int64_t since_origin(ProfileClock::time_point time) const {
    return std::chrono::duration_cast<std::chrono::nanoseconds>(time - origin).count();
  }
};

namespace {

// LibTorch's hooks are plain functions. Whoever records is found here, under the lock.
struct Active {
  std::mutex mutex;
  std::shared_ptr<void> recorder;
};
Active& active() {
  static Active instance;
  return instance;
}

}  // namespace

Profile::Profile() : recorder_(std::make_shared<Recorder>()) {
  {
    const std::lock_guard lock(active().mutex);
    NEEDLE_CHECK(active().recorder == nullptr, "two profiles at a time");
    active().recorder = recorder_;
  }
  const auto begin = [](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> {
    auto open = std::make_unique<OpenEvent>();
    open->start = ProfileClock::now();
    return open;
  };
  const auto end = [](const at::RecordFunction& function, at::ObserverContext* context) {
    const auto now = ProfileClock::now();
    const std::lock_guard lock(active().mutex);
    const auto recorder = std::static_pointer_cast<Recorder>(active().recorder);
    if (recorder == nullptr || context == nullptr) {
      return;
    }
    const auto start = static_cast<OpenEvent*>(context)->start;
    recorder->events.push_back({.name = function.name(),
                                .thread = function.threadId(),
                                .start_ns = recorder->since_origin(start),
                                .end_ns = recorder->since_origin(now)});
  };
  handle_ = at::addGlobalCallback(
      at::RecordFunctionCallback(begin, end)
          .scopes({at::RecordScope::FUNCTION, at::RecordScope::BACKWARD_FUNCTION,
                   at::RecordScope::USER_SCOPE}));
}

Profile::~Profile() { stop(); }

void Profile::stop() {
  if (handle_ == 0) {
    return;
  }
  at::removeCallback(handle_);
  handle_ = 0;
  const std::lock_guard lock(active().mutex);
  active().recorder.reset();
}

std::vector<ProfileRow> Profile::rows() const {
  // By thread and start, the longer first: what lies inside an event follows it.
  std::vector<const Recorder::Event*> order;
  for (const Recorder::Event& event : recorder_->events) {
    order.push_back(&event);
  }
  std::sort(order.begin(), order.end(), [](const Recorder::Event* a, const Recorder::Event* b) {
    return std::tuple(a->thread, a->start_ns, -a->end_ns) <
           std::tuple(b->thread, b->start_ns, -b->end_ns);
  });
  std::map<std::string, ProfileRow> by_name;
  std::vector<const Recorder::Event*> open;
  for (const Recorder::Event* event : order) {
    while (!open.empty() &&
           (open.back()->thread != event->thread || open.back()->end_ns <= event->start_ns)) {
      open.pop_back();
    }
    const double ms = static_cast<double>(event->end_ns - event->start_ns) / 1e6;
    ProfileRow& row = by_name[event->name];
    row.name = event->name;
    ++row.calls;
    row.total_ms += ms;
    row.self_ms += ms;
    if (!open.empty()) {
      by_name[open.back()->name].self_ms -= ms;
    }
    open.push_back(event);
  }
  std::vector<ProfileRow> rows;
  for (auto& [name, row] : by_name) {
    rows.push_back(std::move(row));
  }
  std::sort(rows.begin(), rows.end(),
            [](const ProfileRow& a, const ProfileRow& b) { return a.self_ms > b.self_ms; });
  return rows;
}

std::string Profile::table(std::size_t count) const {
  std::string text = format("{:>10} {:>10} {:>8}  {}\n", "self ms", "total ms", "calls", "what");
  for (const ProfileRow& row : rows()) {
    if (count-- == 0) {
      break;
    }
    text += format("{:10.1f} {:10.1f} {:8}  {}\n", row.self_ms, row.total_ms, row.calls, row.name);
  }
  return text;
}

void Profile::write_chrome_trace(const std::filesystem::path& path) const {
  Json events = Json::array();
  for (const Recorder::Event& event : recorder_->events) {
    events.push_back({{"name", event.name},
                      {"ph", "X"},
                      {"pid", 1},
                      {"tid", event.thread},
                      {"ts", static_cast<double>(event.start_ns) / 1e3},
                      {"dur", static_cast<double>(event.end_ns - event.start_ns) / 1e3}});
  }
  write_json_file(path, {{"traceEvents", std::move(events)}});
}

double product_gflops(torch::ScalarType dtype, const torch::Device& device) {
  constexpr std::int64_t kSize = 1024;
  constexpr int kRounds = 8;
  const auto options = torch::TensorOptions().device(device).dtype(dtype);
  const auto a = torch::ones({kSize, kSize}, options), b = torch::ones({kSize, kSize}, options);
  double best_seconds = std::numeric_limits<double>::infinity();
  for (int i = 0; i < kRounds; ++i) {
    const auto start = std::chrono::steady_clock::now();
    const auto product = a.mm(b);
    synchronize(device);
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    best_seconds = std::min(best_seconds, elapsed.count());
  }
  return 2.0 * kSize * kSize * kSize / best_seconds / 1e9;
}

}  // namespace needle
