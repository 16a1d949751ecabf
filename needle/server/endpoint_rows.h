// Rows asked from a large model behind an OpenAI-compatible endpoint: only when the user asks, the
// one connection that a server makes by itself.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "needle/calls/tool.h"
#include "needle/core/file.h"

namespace needle {

struct RowEndpoint {
  std::string url;    // "https://api.example.org/v1", what comes before /chat/completions
  std::string model;  // as the endpoint calls it
  std::string key;    // kept in memory only; "" sends none
  // PEM: who may have signed the certificate of an https endpoint. Empty: whom this machine trusts.
  std::filesystem::path ca_file;
};

// Throws FileError if `path` cannot be read and FormatError if it holds no PEM certificate.
void check_ca_file(const std::filesystem::path& path);

// Throws DataError if `url` is not http:// or https:// with a host.
void check_endpoint(const RowEndpoint& endpoint);

struct EndpointRequest {
  RowEndpoint endpoint;
  std::vector<Tool> tools;
  std::int64_t count = 200;
  std::function<bool()> stop = [] { return false; };
};

// Asks for batches until `count` valid rows have come, and writes those; rows that do not fit their
// tools are left out. Returns what is to be said about it: how many were left out, why it left off
// early. Throws Error if not one valid row came, with the endpoint's own words; never with the key.
std::string write_endpoint_rows(AtomicFileWriter& rows, const EndpointRequest& request);

// The rows of a reply's content: a JSON array of {"query","answers"}, or {"rows":[...]}, also
// inside of a fence of three backquotes. Those that fit `tools`, as lines; the rest is counted.
struct ParsedRows {
  std::vector<std::string> lines;
  std::int64_t left_out = 0;
  std::string first_problem;
};
ParsedRows parse_endpoint_rows(std::string_view content, const std::vector<Tool>& tools);

}  // namespace needle
