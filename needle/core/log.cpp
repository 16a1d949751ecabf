#include "needle/core/log.h"

#include <cstdlib>
#include <memory>

#include <spdlog/sinks/stdout_color_sinks.h>
#include <spdlog/spdlog.h>

#include "needle/core/enum_names.h"
#include "needle/core/progress.h"

namespace needle {
namespace {

constexpr EnumNames<LogLevel, 5> kLogLevelNames{{{{LogLevel::kDebug, "debug"},
                                                  {LogLevel::kInfo, "info"},
                                                  {LogLevel::kWarning, "warning"},
                                                  {LogLevel::kError, "error"},
                                                  {LogLevel::kOff, "off"}}}};

spdlog::level::level_enum to_spdlog(LogLevel level) {
  switch (level) {
    case LogLevel::kDebug:
      return spdlog::level::debug;
    case LogLevel::kInfo:
      return spdlog::level::info;
    case LogLevel::kWarning:
      return spdlog::level::warn;
    case LogLevel::kError:
      return spdlog::level::err;
    case LogLevel::kOff:
      break;
  }
  return spdlog::level::off;
}

// Made at first use and never destroyed: a thread may log while the program ends.
spdlog::logger& logger() {
  static spdlog::logger* const instance = [] {
    auto* made =
        new spdlog::logger("needle", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
    made->set_pattern("%H:%M:%S %^%l%$: %v");
    made->flush_on(spdlog::level::debug);
    const char* const wanted = std::getenv("NEEDLE_LOG");
    const auto level = kLogLevelNames.parse(wanted == nullptr ? "info" : wanted);
    made->set_level(to_spdlog(level.value_or(LogLevel::kInfo)));
    if (!level && *wanted != '\0') {
      made->warn(
          format("NEEDLE_LOG={}: expected one of {}; taking info", wanted, kLogLevelNames.list()));
    }
    return made;
  }();
  return *instance;
}

}  // namespace

void set_log_level(LogLevel level) { logger().set_level(to_spdlog(level)); }

void log_message(LogLevel level, std::string_view message) {
  spdlog::logger& log = logger();
  if (log.should_log(to_spdlog(level)) && level != LogLevel::kOff) {
    internal::clear_progress_line();
    log.log(to_spdlog(level), spdlog::string_view_t(message.data(), message.size()));
  }
}

}  // namespace needle
