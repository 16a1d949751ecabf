// The subcommands of needle-train.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

namespace needle {

// How many processes train, the command line that starts each of them, and what they load first.
struct LaunchFlags {
  std::int64_t ranks = 1;
  std::int64_t max_restarts = 0;
  std::vector<std::string> command;
  std::vector<std::string> device_plugins;  // loaded by each of them
};

// `launch`: may be set by options of the app and of the subcommand alike.
void add_launch_options(CLI::App& app, LaunchFlags& launch);
void add_pretrain_command(CLI::App& app, std::shared_ptr<LaunchFlags> launch);
void add_finetune_command(CLI::App& app, std::shared_ptr<LaunchFlags> launch);
void add_config_command(CLI::App& app);
void add_bench_command(CLI::App& app, std::shared_ptr<LaunchFlags> launch);

}  // namespace needle
