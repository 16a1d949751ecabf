// What one request may ask for at most.
#pragma once

#include <cstddef>
#include <cstdint>

namespace needle {

struct ServerLimits {
  std::size_t body_bytes = 1 << 20;
  std::size_t head_bytes = 32 << 10;  // request line and headers
  std::size_t query_bytes = 64 << 10;
  std::size_t tools = 1000;
  std::size_t tool_bytes = 64 << 10;     // of one tool, written compactly
  std::size_t inputs = 256;              // texts of one embeddings request
  std::int64_t choices = 16;             // n
  std::int64_t deadline_ms = 60'000;     // from the whole request to the whole answer
  std::int64_t slow_client_ms = 10'000;  // to send a head; as long again for a body
  std::int64_t idle_ms = 30'000;         // between two requests on one connection
};

}  // namespace needle
