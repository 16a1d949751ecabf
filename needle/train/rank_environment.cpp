#include "needle/train/rank_environment.h"

#include <algorithm>
#include <charconv>
#include <cstdlib>

#include "needle/core/error.h"

namespace needle {
namespace {

constexpr int kFirstPort = 29500;  // as torchrun

class Reader {
 public:
  explicit Reader(const EnvironmentLookup& lookup) : lookup_(lookup) {}

  bool has(const std::string& name) const { return lookup_(name).has_value(); }
  std::string text(const std::string& name, std::string fallback) const {
    return lookup_(name).value_or(std::move(fallback));
  }
  std::int64_t number(const std::string& name) const {
    const auto value = lookup_(name);
    if (!value) {
      throw ConfigError(
          format("environment variable {} is not set, though others of its launcher are; start the "
                 "program with torchrun, srun, mpirun or needle-train --nproc",
                 name));
    }
    std::int64_t result = 0;
    const char* const end = value->data() + value->size();
    const auto [rest, error] = std::from_chars(value->data(), end, result);
    if (error != std::errc() || rest != end || result < 0) {
      throw ConfigError(
          format("environment variable {}={}: expected a number of 0 or more", name, *value));
    }
    return result;
  }
  std::int64_t number(const std::string& name, std::int64_t fallback) const {
    return has(name) ? number(name) : fallback;
  }

 private:
  const EnvironmentLookup& lookup_;
};

void read_torchrun(const Reader& reader, RankEnvironment& env) {
  env.launcher = "torchrun";
  env.rank = reader.number("RANK");
  env.world = reader.number("WORLD_SIZE");
  env.local_rank = reader.number("LOCAL_RANK", env.rank);
  env.local_world = reader.number("LOCAL_WORLD_SIZE", env.world);
  env.restarts = reader.number("TORCHELASTIC_RESTART_COUNT", 0);
  env.hosted_store = reader.text("TORCHELASTIC_USE_AGENT_STORE", "") == "True";
  if (env.local_world < env.world && !reader.has("MASTER_ADDR")) {
    throw ConfigError(format(
        "{} ranks, {} of them on this host, and no MASTER_ADDR: set it to the host of rank 0, on "
        "every host",
        env.world, env.local_world));
  }
  if (reader.has("NEEDLE_LAUNCHER")) {
    env.launcher = reader.text("NEEDLE_LAUNCHER", "");
  }
  if (reader.has("NEEDLE_STORE_FD")) {
    env.store_fd = static_cast<int>(reader.number("NEEDLE_STORE_FD"));
  }
}

void read_slurm(const Reader& reader, RankEnvironment& env) {
  env.launcher = "srun";
  env.rank = reader.number("SLURM_PROCID");
  env.world =
      reader.number(reader.has("SLURM_STEP_NUM_TASKS") ? "SLURM_STEP_NUM_TASKS" : "SLURM_NTASKS");
  env.local_rank = reader.number("SLURM_LOCALID");
  const std::string nodes =
      reader.text("SLURM_STEP_NODELIST", reader.text("SLURM_JOB_NODELIST", ""));
  env.local_world = env.world;
  if (reader.has("SLURM_STEP_TASKS_PER_NODE") && reader.has("SLURM_NODEID")) {
    const std::string tasks = reader.text("SLURM_STEP_TASKS_PER_NODE", "");
    env.local_world = slurm_tasks_of_node(tasks, reader.number("SLURM_NODEID"));
  } else {
    env.local_world = reader.number("SLURM_NTASKS_PER_NODE", env.world);
  }
  const std::string first = first_slurm_host(nodes);
  if (!first.empty()) {
    env.master_host = first;
  } else if (env.local_world < env.world && !reader.has("MASTER_ADDR")) {
    throw ConfigError(
        "srun on several hosts without SLURM_STEP_NODELIST or SLURM_JOB_NODELIST: set MASTER_ADDR "
        "to the host of rank 0");
  }
  env.master_port = kFirstPort + static_cast<int>(reader.number("SLURM_JOB_ID", 0) % 1000);
  env.restarts = reader.number("SLURM_RESTART_COUNT", 0);
}

void read_mpi(const Reader& reader, RankEnvironment& env) {
  env.launcher = "mpirun";
  const bool open_mpi = reader.has("OMPI_COMM_WORLD_SIZE");
  env.rank = reader.number(open_mpi ? "OMPI_COMM_WORLD_RANK" : "PMI_RANK");
  env.world = reader.number(open_mpi ? "OMPI_COMM_WORLD_SIZE" : "PMI_SIZE");
  env.local_rank =
      reader.number(open_mpi ? "OMPI_COMM_WORLD_LOCAL_RANK" : "MPI_LOCALRANKID", env.rank);
  env.local_world =
      reader.number(open_mpi ? "OMPI_COMM_WORLD_LOCAL_SIZE" : "MPI_LOCALNRANKS", env.world);
  if (env.local_world < env.world && !reader.has("MASTER_ADDR")) {
    throw ConfigError(
        "mpirun on several hosts: set MASTER_ADDR to the host of rank 0 (mpirun -x "
        "MASTER_ADDR=host ...)");
  }
}

void check(const RankEnvironment& env) {
  if (env.world < 1 || env.rank >= env.world) {
    throw ConfigError(
        format("{} says that this is rank {} of {}", env.launcher, env.rank, env.world));
  }
  if (env.master_port < 1 || env.master_port > 65535) {
    throw ConfigError(format("MASTER_PORT={}: expected 1 to 65535", env.master_port));
  }
}

}  // namespace

std::string first_slurm_host(std::string_view nodelist) {
  const std::size_t bracket = nodelist.find('[');
  const std::size_t comma = nodelist.find(',');
  if (bracket == std::string_view::npos || comma < bracket) {
    return std::string(nodelist.substr(0, comma));
  }
  const std::string_view inside = nodelist.substr(bracket + 1);
  const std::string_view first = inside.substr(0, inside.find_first_of("-,]"));
  const std::size_t close = nodelist.find(']');
  std::string_view suffix = close == std::string_view::npos ? "" : nodelist.substr(close + 1);
  const std::string head = std::string(nodelist.substr(0, bracket)) + std::string(first);
  return head + (suffix.empty() || suffix[0] == ',' ? std::string() : first_slurm_host(suffix));
}

std::int64_t slurm_tasks_of_node(std::string_view counts, std::int64_t node) {
  const auto wrong = [&] {
    return ConfigError(
        format("environment variable SLURM_STEP_TASKS_PER_NODE={}: expected a count for node {} as "
               "in \"2(x3),1\"",
               counts, node));
  };
  for (std::string_view rest = counts; !rest.empty();) {
    const std::string_view part = rest.substr(0, rest.find(','));
    rest = rest.substr(std::min(part.size() + 1, rest.size()));
    std::int64_t tasks = 0;
    std::int64_t nodes = 1;
    const char* const end = part.data() + part.size();
    auto [at, error] = std::from_chars(part.data(), end, tasks);
    if (error == std::errc() && std::string_view(at, end).starts_with("(x")) {
      const auto repeat = std::from_chars(at + 2, end, nodes);
      error = repeat.ec;
      at = repeat.ptr != end && *repeat.ptr == ')' ? repeat.ptr + 1 : repeat.ptr - 1;
    }
    if (error != std::errc() || at != end || tasks < 1 || nodes < 1) {
      throw wrong();
    }
    if (node < nodes) {
      return tasks;
    }
    node -= nodes;
  }
  throw wrong();
}

RankEnvironment rank_environment(const EnvironmentLookup& lookup) {
  const Reader reader(lookup);
  RankEnvironment env;
  if (reader.has("RANK") || reader.has("WORLD_SIZE")) {
    read_torchrun(reader, env);
  } else if (reader.has("SLURM_PROCID") &&
             (reader.has("SLURM_STEP_NUM_TASKS") || reader.has("SLURM_STEP_ID"))) {
    read_slurm(reader, env);
  } else if (reader.has("OMPI_COMM_WORLD_SIZE") || reader.has("PMI_SIZE")) {
    read_mpi(reader, env);
  } else {
    return env;
  }
  env.master_host = reader.text("MASTER_ADDR", env.master_host);
  env.master_port = static_cast<int>(reader.number("MASTER_PORT", env.master_port));
  check(env);
  return env;
}

RankEnvironment rank_environment() {
  return rank_environment([](const std::string& name) -> std::optional<std::string> {
    const char* const value = std::getenv(name.c_str());
    return value == nullptr ? std::nullopt : std::optional<std::string>(value);
  });
}

}  // namespace needle
