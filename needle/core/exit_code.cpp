#include "needle/core/exit_code.h"

#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iostream>
#include <new>
#include <string_view>

#include "needle/core/error.h"
#include "needle/core/progress.h"

namespace needle {
namespace {

int report(const char* kind, std::string_view message, int code) noexcept {
  internal::clear_progress_line();
  std::fprintf(stderr, "%s: %.*s\n", kind, static_cast<int>(message.size()), message.data());
  std::fflush(stderr);
  return code;
}

// LibTorch's errors bring a backtrace, which is for developers. Programs without a log print, too.
bool wants_backtraces() noexcept {
  const char* const level = std::getenv("NEEDLE_LOG");
  return level != nullptr && std::string_view(level) == "debug";
}

}  // namespace

std::string_view message_of(const std::exception& error) noexcept {
  const std::string_view what = error.what();
  return what.substr(0, what.find("\nException raised from "));
}

int run_main(const std::function<void()>& body) noexcept {
#ifdef SIGXFSZ
  std::signal(SIGXFSZ, SIG_IGN);
#endif
  try {
    body();
    std::cout.flush();
    if (!std::cout || std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
      return report("error", "cannot write to standard output", kExitFailed);
    }
    return kExitDone;
  } catch (const ConfigError& error) {
    return report("error", error.what(), kExitUsage);
  } catch (const Interrupted& error) {
    return report("interrupted", error.what(), kExitInterrupted);
  } catch (const std::bad_alloc&) {
    return report("error", "out of memory", kExitFailed);
  } catch (const std::exception& error) {
    return report("error", wants_backtraces() ? error.what() : message_of(error), kExitFailed);
  } catch (...) {
    return report("error", "an exception of an unknown type", kExitFailed);
  }
}

}  // namespace needle
