// The user's rows, checked and split before anything is trained on them.
#pragma once

#include <filesystem>
#include <vector>

#include "needle/data/example.h"
#include "needle/data/split.h"

namespace needle {

struct FinetuneData {
  std::vector<CallExample> train;
  std::vector<CallExample> validation;
  std::vector<CallExample> test;
  Split split;
};

// Logs what deserves a look (tools with few examples, values that are not in the query, duplicates,
// calls that do not fit their tool). Throws DataError with file:line of the first rows that cannot
// be trained on, unless `skip_bad_rows`, and for a file without rows.
FinetuneData read_finetune_data(const std::filesystem::path& path, const SplitConfig& config,
                                bool skip_bad_rows);

// Every tool on offer anywhere in the examples, the first declaration of each name: a JSON array, a
// tool a line.
std::string collect_tools(const FinetuneData& data);

}  // namespace needle
