// Logging to stderr: results belong on stdout. Libraries below `train`, `synth` and `apps` log
// nothing.
#pragma once

#include <string>
#include <string_view>

#include "needle/core/format.h"

namespace needle {

enum class LogLevel { kDebug, kInfo, kWarning, kError, kOff };

// Default: kInfo, or what the environment variable NEEDLE_LOG names (debug, info, warning, error,
// off).
void set_log_level(LogLevel level);

// Thread-safe; one line a call.
void log_message(LogLevel level, std::string_view message);

template <typename... Args>
void log_debug(std::string_view pattern, const Args&... args) {
  log_message(LogLevel::kDebug, format(pattern, args...));
}
template <typename... Args>
void log_info(std::string_view pattern, const Args&... args) {
  log_message(LogLevel::kInfo, format(pattern, args...));
}
template <typename... Args>
void log_warning(std::string_view pattern, const Args&... args) {
  log_message(LogLevel::kWarning, format(pattern, args...));
}
template <typename... Args>
void log_error(std::string_view pattern, const Args&... args) {
  log_message(LogLevel::kError, format(pattern, args...));
}

}  // namespace needle
