#include "needle/train/stop_signal.h"

#include "needle/core/error.h"

namespace needle {
namespace {

// What a handler may touch. The state is global because signals are.
volatile std::sig_atomic_t pending_signal = 0;
bool installed = false;

void remember(int signal_number) { pending_signal = signal_number; }

}  // namespace

StopSignal::StopSignal() {
  NEEDLE_CHECK(!installed, "only one StopSignal may live at a time");
  pending_signal = 0;
  struct sigaction action {};
  action.sa_handler = remember;
  sigemptyset(&action.sa_mask);
  // The kernel puts the default action back on delivery: a second Ctrl-C ends a process that does
  // not come to a stop.
  action.sa_flags = SA_RESTART | static_cast<int>(SA_RESETHAND);
  sigaction(SIGINT, &action, &previous_int_);
  sigaction(SIGTERM, &action, &previous_term_);
  installed = true;
}

StopSignal::~StopSignal() {
  sigaction(SIGINT, &previous_int_, nullptr);
  sigaction(SIGTERM, &previous_term_, nullptr);
  installed = false;
}

bool StopSignal::requested() const { return pending_signal != 0; }

const char* StopSignal::name() const {
  switch (pending_signal) {
    case SIGINT:
      return "SIGINT";
    case SIGTERM:
      return "SIGTERM";
    default:
      return "";
  }
}

}  // namespace needle
