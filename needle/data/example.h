// One function-call example: as it stands in a file, and as token ids (specification, section 4).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "needle/text/special_tokens.h"

namespace needle {

// One JSONL row. `tools` and `answers` are JSON text, whether the file had strings or real arrays.
struct CallExample {
  std::string query{};
  std::string tools = "[]";
  std::string answers = "[]";
  std::int64_t line = 0;  // in its file, from 1
};

// A pretraining row: plain text.
struct PretrainExample {
  std::string query{};
  std::string seed_text{};
  std::string answer{};
  std::int64_t line = 0;
};

// Classes of target tokens; the loss weights are looked up at training time.
enum class TokenClass : std::int8_t { kStructure = 0, kName = 1, kValue = 2, kKey = 3 };

struct EncodedTool {
  bool called = false;         // a tool of that name is called in the answer
  std::vector<TokenId> ids{};  // compact JSON alone, at most EncodeConfig::max_tool_len
};

struct EncodedExample {
  std::int64_t row = 0;           // index of the example in its input
  std::vector<TokenId> source{};  // encoder ids
  std::vector<TokenId> decoder_in{};
  std::vector<TokenId> target{};
  std::vector<TokenClass> classes{};  // of target; empty for pretraining rows
  std::vector<TokenId> query_ids{};   // for contrastive pairs; empty for pretraining rows
  std::vector<EncodedTool> tools{};
};

}  // namespace needle
