// A batch on the host, ready to become tensors. No LibTorch here.
#pragma once

#include <cstdint>
#include <vector>

#include "needle/text/special_tokens.h"

namespace needle {

// Rows padded with kPadId to the longest row of the batch (or to the packed length). Row-major.
struct Batch {
  std::int64_t rows = 0;             // B
  std::int64_t enc_len = 0;          // T
  std::int64_t dec_len = 0;          // L
  std::vector<TokenId> source;       // [B, T]
  std::vector<TokenId> decoder_in;   // [B, L]
  std::vector<TokenId> target;       // [B, L]
  std::vector<std::int8_t> classes;  // [B, L], token classes; empty: unweighted (pretraining)
  std::vector<std::int32_t> source_segments;   // [B, T], 0 = padding; empty: rows are not packed
  std::vector<std::int32_t> decoder_segments;  // [B, L]

  std::int64_t target_tokens() const {  // non-pad targets
    std::int64_t count = 0;
    for (const TokenId id : target) {
      count += id != kPadId ? 1 : 0;
    }
    return count;
  }
};

// Query i belongs to tool i; every other row is a negative.
struct ContrastiveBatch {
  std::int64_t rows = 0;
  std::int64_t query_len = 0;
  std::int64_t tool_len = 0;
  std::vector<TokenId> queries;  // [rows, query_len]
  std::vector<TokenId> tools;    // [rows, tool_len]
};

}  // namespace needle
