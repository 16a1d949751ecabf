// The two ways to run needle-serve, and what they share.
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "needle/server/mcp_client.h"
#include "needle/server/model_store.h"
#include "needle/server/tool_shelf.h"

#include "apps/cli.h"

namespace needle {

// Which models are served.
struct ModelOptions {
  std::vector<std::string> models;
  std::string folder;
  std::string numerics = "mixed";

  void add_to(CLI::App& app);
  // `more`: a folder whose models are served, too; "": none.
  ModelStore open(const std::filesystem::path& more = {}) const;
};

// Tools that need not come with each request.
struct ToolOptions {
  std::vector<std::string> commands;  // of MCP servers
  std::string config;                 // that names MCP servers
  std::string tools;                  // a file
  int timeout_ms = 30'000;

  struct Imported {
    ToolShelf shelf;
    std::vector<std::unique_ptr<McpClient>> servers;
  };
  void add_to(CLI::App& app);
  // Starts the servers. Throws Error for one that does not work.
  std::unique_ptr<Imported> import() const;
};

// What is served, for people. Opens the default model, so that its faults show now.
std::string greeting(ModelStore& models);

void add_http_server(CLI::App& app);  // needle-serve itself
void add_mcp_command(CLI::App& app);  // needle-serve mcp

}  // namespace needle
