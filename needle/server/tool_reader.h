// The tools of a request, read once however often they are sent: clients offer the same ones with
// every query, and reading them took as long as everything else that a reply needs besides the
// model.
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/calls/tool.h"
#include "needle/core/lru_cache.h"
#include "needle/server/limits.h"

namespace needle {

struct ReadTools {
  std::string json = "[]";  // compact, each tool as the model is shown it
  std::vector<Tool> tools;  // the same
  bool strict = false;      // one of them asks for it
};

// The body's "tools" in any style that parse_tools reads; checked against the limits, names unique.
// Throws ApiError 400 that names the tool. No tools if absent or null.
ReadTools read_tools(const JsonValue& body, const ServerLimits& limits);

// Safe from several threads.
class ToolReader {
 public:
  // The least recently used go first.
  static constexpr std::size_t kKept = 64;
  static constexpr std::size_t kKeptBytes = 2 << 20;  // of all texts together

  explicit ToolReader(const ServerLimits& limits) : limits_(limits) {}

  // As read_tools; an error is not kept.
  std::shared_ptr<const ReadTools> read(const JsonValue& body);

  std::size_t kept() const { return kept_.size(); }

 private:
  const ServerLimits limits_;
  LruCache<ReadTools> kept_{kKept, kKeptBytes};
};

}  // namespace needle
