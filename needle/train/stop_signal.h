// Ctrl-C and SIGTERM as a question that a training loop asks between two steps.
#pragma once

#include <csignal>

namespace needle {

// While it lives, the first SIGINT or SIGTERM only raises a flag, so that the loop can finish its
// step and save; the second one does what it did before (as a rule: ends the process). One object
// at a time; construct and destroy it in the same thread.
class StopSignal {
 public:
  StopSignal();   // throws needle::Error if another one lives
  ~StopSignal();  // restores the handlers that stood before
  StopSignal(const StopSignal&) = delete;
  StopSignal& operator=(const StopSignal&) = delete;

  bool requested() const;
  const char* name() const;  // "SIGINT", "SIGTERM", or "" if none came

 private:
  struct sigaction previous_int_ {};
  struct sigaction previous_term_ {};
};

}  // namespace needle
