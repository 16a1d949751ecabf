// Tools that the server itself was given, and the choice of those that fit a prompt.
#pragma once

#include <cstdint>
#include <map>
#include <mutex>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/server/model_store.h"

namespace needle {

// By how many tokens query and tools are longer than what the model reads; 0: they fit.
std::int64_t prompt_overflow(const ServedModel& served, std::string_view query,
                             const std::string& tools_json);

// Filled once, then safe from several threads.
class ToolShelf {
 public:
  struct Origin {
    std::string server;
    std::string tool;  // its name there
  };

  // `tools`: a list as an MCP server declares it. Kept are name, description and parameters. A name
  // that is taken already becomes SERVER_NAME. Throws DataError.
  void add(const std::string& server, const JsonValue& tools);

  bool empty() const { return tools_.items().empty(); }
  const JsonValue& tools() const { return tools_; }   // flat style, names unique
  const Origin* origin(std::string_view name) const;  // nullptr: not a tool of this shelf

  struct Choice {
    std::string tools_json;
    std::int64_t left_out = 0;
  };
  // All of `tools_json` (an array) if they fit the model's prompt beside the query; else as many of
  // those that fit the query best, best first. Embeddings of the shelf's own tools are kept.
  Choice fitting(const ServedModel& served, std::string_view query,
                 const std::string& tools_json) const;

 private:
  std::vector<std::vector<float>> embeddings(const ServedModel& served,
                                             const std::vector<std::string>& texts) const;

  JsonValue tools_ = JsonValue::array();
  std::map<std::string, Origin, std::less<>> origins_;
  mutable std::mutex mutex_;
  mutable std::map<std::string, std::vector<float>> embeddings_;  // by model and text of the tool
};

}  // namespace needle
