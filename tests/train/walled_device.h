// What the tests' device (walled_device.cpp) has counted since it was loaded.
#pragma once

#include <cstdint>

struct WalledCounts {
  std::int64_t copies_in = 0;           // from pinned memory of the host, not waited for
  std::int64_t waiting_copies_in = 0;   // from any other
  std::int64_t copies_out = 0;          // to pinned memory of the host, arriving later
  std::int64_t waiting_copies_out = 0;  // single values (item()) included
  std::int64_t waits = 0;               // for the device, a stream or an event
  std::int64_t kernels = 0;
  std::int64_t pinned = 0;     // allocations of pinned memory
  std::int64_t replays = 0;    // of recorded work
  std::int64_t exchanges = 0;  // of the process group
};

extern "C" const WalledCounts* walled_counts();
