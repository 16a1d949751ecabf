#include <cstdint>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/decode/tool_index_file.h"

#include "apps/needle_run/commands.h"

namespace needle {
namespace {

struct RetrieveCommand {
  ModelOptions model;
  std::string tools;
  std::string query;
  CLI::Option* query_option = nullptr;
  std::int64_t top_k = 5;
  std::string index_file;
  bool json = false;
};

void print_ranking(const std::string& query, const std::vector<Tool>& tools,
                   const std::vector<RankedTool>& ranked, bool as_json) {
  JsonValue::Array rows;
  for (const RankedTool& tool : ranked) {
    if (!as_json) {
      std::cout << format("{:+.4f}  {}\n", tool.score, tools[tool.index].name);
    }
    JsonValue row = JsonValue::object();
    row.set("name", JsonValue::string(tools[tool.index].name));
    row.set("index", JsonValue::integer(static_cast<std::int64_t>(tool.index)));
    row.set("score", JsonValue::number(tool.score));
    rows.push_back(std::move(row));
  }
  if (as_json) {
    JsonValue line = JsonValue::object();
    line.set("query", JsonValue::string(query));
    line.set("tools", JsonValue::array(std::move(rows)));
    std::cout << write_compact(line, JsonEscapes::kUtf8) << '\n';
  }
  std::cout << std::flush;
}

// Tells models apart, and ways to compute: the sections' names and checksums, the kernels.
std::string model_fingerprint(const runtime::LoadedModel& model) {
  const runtime::RuntimeEngine& engine = model.engine();
  std::string text = format("{} {}\n", engine.kernel_name(),
                            runtime::kNumericsNames.name(engine.model().numerics));
  for (const WeightsSection& section : engine.model().file->sections()) {
    text += format("{} {} {}\n", section.name, section.size, section.crc);
  }
  return sha256_hex(std::string_view(text));
}

void retrieve(const RetrieveCommand& options) {
  if (options.tools.empty()) {
    throw ConfigError("--tools is missing: give the JSON file that lists the tools");
  }
  if (options.top_k < 1) {
    throw ConfigError(format("--top-k {}: expected at least 1", options.top_k));
  }
  const std::string text = read_tools(options.tools);
  const std::vector<Tool> tools = parse_tools_text(text);
  const runtime::LoadedModel model = options.model.load();
  const ToolIndex index = make_tool_index(model, text, options.index_file);
  const auto rank = [&](const std::string& query) {
    print_ranking(query, tools, index.rank(query, static_cast<std::size_t>(options.top_k)),
                  options.json);
  };
  if (options.query_option->count() > 0) {
    rank(options.query);
    return;
  }
  std::string query;
  while (next_query(query)) {
    rank(query);
  }
}

}  // namespace

ToolIndex make_tool_index(const runtime::LoadedModel& model, const std::string& tools_json,
                          const std::string& file) {
  const JsonEscapes escapes = model.prompt_config().json_escapes;
  const RetrieveOptions settings{.json_escapes = escapes};
  const auto texts = tool_texts(tools_json, escapes);
  if (file.empty()) {
    return {model.engine(), model.tokenizer(), texts, settings};
  }
  return cached_tool_index(model.engine(), model.tokenizer(), texts, settings, file,
                           model_fingerprint(model))
      .index;
}

void add_retrieve_command(CLI::App& app) {
  auto options = std::make_shared<RetrieveCommand>();
  auto* command = app.add_subcommand("retrieve", "Rank tools by how well they fit a query");
  options->model.add_to(*command);
  command->add_option("-t,--tools", options->tools, "Tools: a JSON file or the JSON itself");
  options->query_option =
      command->add_option("-q,--query", options->query, "Query; without it one a line from stdin");
  command->add_option("-k,--top-k", options->top_k, "How many tools are listed")
      ->capture_default_str();
  command->add_option("--index", options->index_file,
                      "File that keeps the tools' embeddings; made anew if model or tools changed");
  command->add_flag("--json", options->json, "One JSON object a line");
  command->callback([options] { retrieve(*options); });
}

}  // namespace needle
