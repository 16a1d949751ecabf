// What needle-run can do. Each adds its options to the command line and does its work through
// needle/runtime/loaded_model.
#pragma once

#include <cstddef>
#include <string>

#include <CLI/CLI.hpp>

#include "needle/decode/retrieve.h"
#include "needle/runtime/loaded_model.h"

namespace needle {

// Shared by all: where the model is and how it runs.
struct ModelOptions {
  std::string model;
  std::string random_weights;  // instead of it: a model config
  std::size_t threads = 1;
  std::string numerics = std::string(runtime::kNumericsNames.name(runtime::Numerics::kMixed));
  bool skip_checksums = false;

  void add_to(CLI::App& command);
  // Throws ConfigError if no model was named.
  runtime::LoadedModel load() const;
};

// JSON text of --tools: a file, or the JSON itself. Throws unless it is an array of tools.
std::string read_tools(const std::string& argument);

// The index of a JSON array of tools; `file`: where their embeddings are kept, or empty. Keeps
// references to `model`.
ToolIndex make_tool_index(const runtime::LoadedModel& model, const std::string& tools_json,
                          const std::string& file);

// A JSON Schema: the text itself or a file; empty stays empty. Not parsed.
std::string read_schema(const std::string& argument);

// One line of `text` at a time from stdin; false at its end. Empty lines are skipped.
bool next_query(std::string& query);

void add_generate(CLI::App& app);  // the default: runs when no subcommand is named
void add_retrieve_command(CLI::App& app);
void add_bench_command(CLI::App& app);

}  // namespace needle
