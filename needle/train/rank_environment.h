// Which of the processes of a run this one is, as its launcher says in environment variables.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace needle {

struct RankEnvironment {
  std::int64_t rank = 0;
  std::int64_t world = 1;
  std::int64_t local_rank = 0;  // among the processes of this host: which device is this one's
  std::int64_t local_world = 1;
  std::string master_host = "127.0.0.1";  // where rank 0 listens
  int master_port = 29500;
  bool hosted_store = false;    // the launcher (torchrun) serves the store itself
  std::optional<int> store_fd;  // a listening socket that rank 0 inherited (needle-train --nproc)
  std::int64_t restarts = 0;    // above 0: the job was started again after a failure
  std::string launcher = "none";
};

// Looks up one variable; nothing if it is not set.
using EnvironmentLookup = std::function<std::optional<std::string>(const std::string& name)>;

// Understands, in this order: RANK and WORLD_SIZE with MASTER_ADDR, MASTER_PORT, LOCAL_RANK,
// LOCAL_WORLD_SIZE and TORCHELASTIC_* (torchrun and `needle-train --nproc`); SLURM_PROCID of a step
// that srun started; OMPI_COMM_WORLD_* and PMI_* of mpirun. None of them: a run of one process.
// Throws ConfigError naming the variable if one is missing, not a number or out of range.
RankEnvironment rank_environment(const EnvironmentLookup& lookup);
RankEnvironment rank_environment();  // of this process

// The first host of SLURM's list: "node[03-05,9],x1" -> "node03".
std::string first_slurm_host(std::string_view nodelist);

// Tasks on one node of SLURM's list: ("2(x3),1", 3) -> 1. Throws ConfigError if it has no such
// node.
std::int64_t slurm_tasks_of_node(std::string_view counts, std::int64_t node);

}  // namespace needle
