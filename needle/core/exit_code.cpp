#include "needle/core/exit_code.h"

#include <csignal>
#include <cstdio>
#include <exception>
#include <iostream>
#include <new>

#include "needle/core/error.h"
#include "needle/core/progress.h"

namespace needle {
namespace {

int report(const char* kind, const char* message, int code) noexcept {
  internal::clear_progress_line();
  std::fprintf(stderr, "%s: %s\n", kind, message);
  std::fflush(stderr);
  return code;
}

}  // namespace

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
    return report("error", error.what(), kExitFailed);
  } catch (...) {
    return report("error", "an exception of an unknown type", kExitFailed);
  }
}

}  // namespace needle
