// What a `main` does with an exception: one line on stderr and an exit code.
#pragma once

#include <exception>
#include <functional>
#include <string_view>

namespace needle {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;         // needle::Error and every other exception
inline constexpr int kExitUsage = 2;          // ConfigError: what was asked for has to change
inline constexpr int kExitInterrupted = 130;  // Interrupted: stopped on request, everything saved

// What a user reads of an error: its message without the C++ backtrace that those of LibTorch end
// with. A view of error.what(). Any thread.
std::string_view message_of(const std::exception& error) noexcept;

// Runs `body` and returns one of the codes above. Prints "error: <message>" to stderr, with
// NEEDLE_LOG=debug in the environment a backtrace behind it; results that could not be written to
// stdout are an error, too. Also makes a write beyond the limit on file sizes an error instead of
// the end of the process (ignores SIGXFSZ).
int run_main(const std::function<void()>& body) noexcept;

}  // namespace needle
