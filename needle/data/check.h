// What is wrong with a function-call JSONL, before anybody trains on it.
#pragma once

#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "needle/core/enum_names.h"
#include "needle/core/json.h"
#include "needle/data/encode.h"
#include "needle/data/jsonl_reader.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

struct CheckOptions {
  std::optional<Tokenizer> tokenizer;  // with one, lengths are checked too
  PromptConfig prompt;
  EncodeConfig encode;
  std::int64_t few_examples = 120;  // tools with fewer are listed
  std::int64_t max_findings = 100;  // kept of each kind; counts are complete
};

enum class FindingKind {
  kBadRow,       // not JSON, a field missing or of the wrong type
  kBadTools,     // `tools` does not declare tools
  kBadAnswers,   // `answers` is not a list of calls
  kInvalidCall,  // unknown tool or parameter, missing parameter, wrong type
  kUngrounded,   // a text value that does not occur in the query (a hint: it may be right)
  kDuplicate,    // the same query, tools and answers as an earlier row
  kConflict,     // the same query and tools as an earlier row, another answer
  kTooLong,      // dropped or cut by the length limits
};

inline constexpr EnumNames<FindingKind, 8> kFindingKindNames{
    {{{FindingKind::kBadRow, "bad_row"},
      {FindingKind::kBadTools, "bad_tools"},
      {FindingKind::kBadAnswers, "bad_answers"},
      {FindingKind::kInvalidCall, "invalid_call"},
      {FindingKind::kUngrounded, "ungrounded"},
      {FindingKind::kDuplicate, "duplicate"},
      {FindingKind::kConflict, "conflict"},
      {FindingKind::kTooLong, "too_long"}}}};

struct Finding {
  FindingKind kind = FindingKind::kBadRow;
  RowProblem place;
};

struct CheckReport {
  std::int64_t rows = 0;  // readable ones
  std::int64_t calls = 0;
  std::int64_t rows_without_call = 0;
  std::vector<std::int64_t> counts;  // by FindingKind
  std::vector<Finding> findings;     // in order of the rows, at most max_findings of each kind
  struct ToolUse {
    std::string tool;
    std::int64_t examples = 0;  // rows whose first call it is
  };
  std::vector<ToolUse> tools;    // most used first; "no-tool" among them
  std::vector<std::string> few;  // tools with fewer than few_examples
  EncodeReport lengths;          // all zero without a tokenizer

  std::int64_t count(FindingKind kind) const;
  bool ok() const;  // no bad row, tools, answers or call
  Json to_json() const;
  std::string text() const;  // for people, several lines
};

// Reads the whole file leniently. Throws FileError if it cannot be read.
CheckReport check_calls_file(const std::filesystem::path& path, const CheckOptions& options = {});

}  // namespace needle
