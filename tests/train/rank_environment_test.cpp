#include "needle/train/rank_environment.h"

#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"

namespace needle {
namespace {

RankEnvironment read(std::map<std::string, std::string> variables) {
  return rank_environment([&](const std::string& name) -> std::optional<std::string> {
    const auto found = variables.find(name);
    return found == variables.end() ? std::nullopt : std::optional(found->second);
  });
}

TEST(RankEnvironmentTest, NoLauncherIsOneProcess) {
  const RankEnvironment env = read({{"SLURM_NTASKS", "4"}, {"SLURM_PROCID", "0"}});  // sbatch alone
  EXPECT_EQ(env.world, 1);
  EXPECT_EQ(env.rank, 0);
  EXPECT_EQ(env.launcher, "none");
}

TEST(RankEnvironmentTest, Torchrun) {
  const RankEnvironment env = read({{"RANK", "5"},
                                    {"WORLD_SIZE", "8"},
                                    {"LOCAL_RANK", "1"},
                                    {"LOCAL_WORLD_SIZE", "4"},
                                    {"MASTER_ADDR", "node7"},
                                    {"MASTER_PORT", "1234"},
                                    {"TORCHELASTIC_RESTART_COUNT", "2"},
                                    {"TORCHELASTIC_USE_AGENT_STORE", "True"}});
  EXPECT_EQ(env.rank, 5);
  EXPECT_EQ(env.world, 8);
  EXPECT_EQ(env.local_rank, 1);
  EXPECT_EQ(env.local_world, 4);
  EXPECT_EQ(env.master_host, "node7");
  EXPECT_EQ(env.master_port, 1234);
  EXPECT_EQ(env.restarts, 2);
  EXPECT_TRUE(env.hosted_store);
}

TEST(RankEnvironmentTest, SlurmStep) {
  const RankEnvironment env = read({{"SLURM_PROCID", "3"},
                                    {"SLURM_STEP_NUM_TASKS", "4"},
                                    {"SLURM_LOCALID", "1"},
                                    {"SLURM_NTASKS_PER_NODE", "2"},
                                    {"SLURM_JOB_ID", "70123"},
                                    {"SLURM_JOB_NODELIST", "gpu[03-04],login"}});
  EXPECT_EQ(env.rank, 3);
  EXPECT_EQ(env.world, 4);
  EXPECT_EQ(env.local_rank, 1);
  EXPECT_EQ(env.local_world, 2);
  EXPECT_EQ(env.master_host, "gpu03");
  EXPECT_EQ(env.master_port, 29623);
}

TEST(RankEnvironmentTest, Mpirun) {
  const RankEnvironment open_mpi = read({{"OMPI_COMM_WORLD_RANK", "1"},
                                         {"OMPI_COMM_WORLD_SIZE", "2"},
                                         {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                                         {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}});
  EXPECT_EQ(open_mpi.rank, 1);
  EXPECT_EQ(open_mpi.world, 2);
  EXPECT_EQ(open_mpi.master_host, "127.0.0.1");
  const RankEnvironment mpich = read({{"PMI_RANK", "1"}, {"PMI_SIZE", "2"}});
  EXPECT_EQ(mpich.rank, 1);
  EXPECT_THROW(read({{"OMPI_COMM_WORLD_RANK", "1"},
                     {"OMPI_COMM_WORLD_SIZE", "4"},
                     {"OMPI_COMM_WORLD_LOCAL_RANK", "1"},
                     {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}}),
               ConfigError);  // two hosts and no MASTER_ADDR
}

TEST(RankEnvironmentTest, NonsenseNamesTheVariable) {
  const auto message = [](std::map<std::string, std::string> variables) -> std::string {
    try {
      read(std::move(variables));
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_THAT(message({{"RANK", "0"}}), testing::HasSubstr("WORLD_SIZE"));
  EXPECT_THAT(message({{"RANK", "x"}, {"WORLD_SIZE", "2"}}), testing::HasSubstr("RANK=x"));
  EXPECT_THAT(message({{"RANK", "2"}, {"WORLD_SIZE", "2"}}), testing::HasSubstr("rank 2 of 2"));
  EXPECT_THAT(message({{"RANK", "0"}, {"WORLD_SIZE", "2"}, {"MASTER_PORT", "70000"}}),
              testing::HasSubstr("MASTER_PORT"));
}

TEST(RankEnvironmentTest, FirstHostOfASlurmList) {
  EXPECT_EQ(first_slurm_host("node1"), "node1");
  EXPECT_EQ(first_slurm_host("node1,node2"), "node1");
  EXPECT_EQ(first_slurm_host("node[001-016,20]"), "node001");
  EXPECT_EQ(first_slurm_host("a[7,9]-ib,b"), "a7-ib");
  EXPECT_EQ(first_slurm_host("login,node[1-2]"), "login");
  EXPECT_EQ(first_slurm_host("rack[2-3]node[05,07],x"), "rack2node05");
}

TEST(RankEnvironmentTest, SlurmHostsMayDifferInTheirTasks) {
  EXPECT_EQ(slurm_tasks_of_node("4", 0), 4);
  EXPECT_EQ(slurm_tasks_of_node("2(x3),1", 2), 2);
  EXPECT_EQ(slurm_tasks_of_node("2(x3),1", 3), 1);
  for (const char* const counts :
       {"2(x3),1", "", "2,", "0", "x", "2(x", "2(x9", "2(x9)z", "2,,1,1,1,1"}) {
    EXPECT_THROW(slurm_tasks_of_node(counts, 4), ConfigError) << counts;
  }
  const RankEnvironment env = read({{"SLURM_PROCID", "2"},
                                    {"SLURM_STEP_NUM_TASKS", "3"},
                                    {"SLURM_LOCALID", "0"},
                                    {"SLURM_NODEID", "1"},
                                    {"SLURM_STEP_TASKS_PER_NODE", "2,1"},
                                    {"SLURM_STEP_NODELIST", "n[1-2]"},
                                    {"SLURM_JOB_NODELIST", "n[0-2]"}});
  EXPECT_EQ(env.local_world, 1);
  EXPECT_EQ(env.master_host, "n1");  // of the step, not of the job
}

TEST(RankEnvironmentTest, SeveralHostsWithoutAFirstOneAreExplained) {
  EXPECT_THROW(read({{"SLURM_PROCID", "0"},
                     {"SLURM_STEP_NUM_TASKS", "4"},
                     {"SLURM_LOCALID", "0"},
                     {"SLURM_NTASKS_PER_NODE", "2"}}),
               ConfigError);
  EXPECT_THROW(read({{"RANK", "0"}, {"WORLD_SIZE", "4"}, {"LOCAL_WORLD_SIZE", "2"}}), ConfigError);
}

}  // namespace
}  // namespace needle
