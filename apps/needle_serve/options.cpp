#include <algorithm>
#include <iterator>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/server/api_error.h"
#include "needle/server/model_search.h"

#include "apps/needle_serve/commands.h"

namespace needle {

void ModelOptions::add_to(CLI::App& app) {
  app.add_option("-m,--model", models,
                 "Weights file (.needle); several may follow, the first is the default. Without it "
                 "and --models: the .needle files of this folder, then of runs/, then of "
                 "NEEDLE_HOME (~/.cache/needle), each newest first")
      ->envname("NEEDLE_MODEL");
  app.add_option("--models", folder,
                 "Folder whose .needle files are served, too, also those that come later")
      ->check(CLI::ExistingDirectory);
  app.add_option("--numerics", numerics,
                 "mixed: 16-bit activations where they matter, 8-bit elsewhere; int8: faster; "
                 "int16: nearer to float; float: token for token as LibTorch")
      ->check(CLI::IsMember({"mixed", "int8", "int16", "float"}))
      ->capture_default_str();
}

ModelStore ModelOptions::open(const std::filesystem::path& more) const {
  // Without --model: the files of --models, else whatever is at hand.
  ModelStore::Finder finder;
  if (!folder.empty()) {
    finder = [place = folder] { return models_in(place); };
  } else if (models.empty()) {
    finder = [] { return models_at_hand(); };
  }
  if (!more.empty()) {
    finder = [more, others = std::move(finder)] {
      std::vector<ModelFile> files = others ? others() : std::vector<ModelFile>();
      std::ranges::copy(models_in(more), std::back_inserter(files));
      return files;
    };
  }
  return {{models.begin(), models.end()},
          std::move(finder),
          {.numerics = *runtime::kNumericsNames.parse(numerics)}};
}

void ToolOptions::add_to(CLI::App& app) {
  app.add_option("--mcp-server", commands,
                 "Command line of an MCP server (stdio) whose tools are imported; may be repeated")
      ->type_name("COMMAND")
      ->expected(1)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  app.add_option("--mcp-config", config,
                 "File that names MCP servers: {\"mcpServers\": {\"name\": {\"command\": ..., "
                 "\"args\": [...], \"env\": {...}}}}")
      ->check(CLI::ExistingFile);
  app.add_option("--tools", tools, "File of tools (JSON; OpenAI, MCP or flat style)")
      ->check(CLI::ExistingFile);
  app.add_option("--mcp-timeout-ms", timeout_ms, "Longest time an MCP server may take to answer")
      ->check(CLI::Range(1, 3'600'000))
      ->capture_default_str();
}

std::unique_ptr<ToolOptions::Imported> ToolOptions::import() const {
  auto imported = std::make_unique<Imported>();
  if (!tools.empty()) {
    const JsonParseResult parsed = parse_json_value(read_file(tools));
    if (!parsed.value) {
      throw ConfigError(format("{}: not JSON: {}", tools, parsed.error));
    }
    imported->shelf.add("", *parsed.value);
  }
  std::vector<McpServerConfig> configs;
  if (!config.empty()) {
    configs = read_mcp_config(config);
  }
  for (const std::string& command : commands) {
    configs.push_back(mcp_command(command));
  }
  for (std::size_t i = 0; i < configs.size(); ++i) {
    int number = 2;
    const std::string name = configs[i].name;
    const auto taken = [&] {
      return std::any_of(configs.begin(), configs.begin() + static_cast<std::ptrdiff_t>(i),
                         [&](const auto& other) { return other.name == configs[i].name; });
    };
    while (taken()) {
      configs[i].name = format("{}_{}", name, number++);
    }
  }
  for (const McpServerConfig& server : configs) {
    auto client = std::make_unique<McpClient>(server, std::chrono::milliseconds(timeout_ms));
    try {
      imported->shelf.add(server.name, JsonValue::array(client->list_tools()));
    } catch (const DataError& error) {
      throw DataError(format("MCP server {}: {}", server.name, error.what()));
    }
    imported->servers.push_back(std::move(client));
  }
  return imported;
}

std::string greeting(ModelStore& models) {
  try {
    const std::string name = models.open("")->name;
    const auto entries = models.list();
    for (const ModelStore::Entry& entry : entries) {
      if (entry.name == name) {
        return format("{} ({}), 1 of {} model(s)", name, entry.path, entries.size());
      }
    }
    return name;
  } catch (const ApiError& error) {
    return error.what();
  }
}

}  // namespace needle
