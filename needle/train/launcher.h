// Starts a program once for each rank on this host, and keeps watch: `needle-train --nproc N`. On
// several hosts torchrun, srun or mpirun do this (rank_environment.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace needle {

struct LaunchOptions {
  std::int64_t ranks = 1;
  std::int64_t max_restarts = 0;     // after a failure: all ranks again, from the newest checkpoint
  double grace_s = 120.0;            // from a stop signal to SIGKILL: time to save
  std::vector<std::string> command;  // program and arguments; every rank gets the same
};

// Every rank gets torchrun's variables (RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT,
// TORCHELASTIC_RESTART_COUNT, ...) and, unless the variable is set, an equal part of the cores in
// OMP_NUM_THREADS. The first rank has the terminal; lines of the others come with "[rank 1]" in
// front, on stderr. SIGINT and SIGTERM are passed on. When a rank fails the others are ended: they
// have 2 s to notice by themselves. A rank that asks for other settings (exit code 2) or was
// stopped (130) is not started again.
//
// Returns the exit code for the whole: 0, or that of the rank that failed first (1 for one that a
// signal killed). Not thread-safe: handles signals while it runs. Throws Error if a process cannot
// be started.
int launch_ranks(const LaunchOptions& options);

}  // namespace needle
