// From JSONL files to a data set: reading, encoding, packing, and reuse of what was made before.
#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/enum_names.h"
#include "needle/core/thread_pool.h"
#include "needle/data/encode.h"
#include "needle/data/jsonl_reader.h"
#include "needle/data/packed_dataset.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"

namespace needle {

enum class RowKind { kCalls, kPretrain };
inline constexpr EnumNames<RowKind, 2> kRowKindNames{
    {{{RowKind::kCalls, "calls"}, {RowKind::kPretrain, "pretrain"}}}};
template <>
struct EnumTable<RowKind> {
  static constexpr const auto& value = kRowKindNames;
};

// Everything that decides what a data set holds, besides the input files and the tokenizer.
struct PrepareConfig {
  RowKind kind = RowKind::kCalls;
  bool pack = true;
  bool skip_bad_rows = false;
  std::int64_t max_rows = 0;
  PromptConfig prompt;
  EncodeConfig encode;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("kind", self.kind, "Rows: calls or pretrain");
    visit("pack", self.pack,
          "Put several examples into a row (the reference does so for calls only)");
    visit("skip_bad_rows", self.skip_bad_rows,
          "Leave out rows that cannot be read instead of stopping");
    visit("max_rows", self.max_rows, "Read at most so many rows; 0: all");
    visit("prompt", self.prompt, "Lengths and how prompts are written");
    visit("encode", self.encode, "How rows become ids");
  }
};

// Called now and then from the calling thread: rows read and encoded so far. `total` bytes of input
// is not known for gzip.
using PrepareProgress = std::function<void(std::int64_t rows)>;

struct PreparedDataset {
  PackedDataset dataset;
  std::filesystem::path path;
  bool reused = false;               // nothing had to be done
  std::vector<RowProblem> problems;  // rows left out (skip_bad_rows); empty when reused
};

// SHA-256 over the inputs' contents, the settings, the tokenizer and the file format's version.
std::string content_hash(std::span<const std::filesystem::path> inputs, const Tokenizer& tokenizer,
                         const PrepareConfig& config);

// The data set of these files, in their order: opened if `cache_folder` holds it, else made and
// stored there under its content hash. A damaged stored file is made again. Throws DataError if no
// row is left.
PreparedDataset prepare_dataset(std::span<const std::filesystem::path> inputs,
                                const Tokenizer& tokenizer, const PrepareConfig& config,
                                const std::filesystem::path& cache_folder, ThreadPool& pool,
                                const PrepareProgress& progress = {});

// The same in memory, of rows that were read before (a split, for instance). Throws DataError if no
// row is left.
PackedDataset make_dataset(std::span<const CallExample> examples, const Tokenizer& tokenizer,
                           const PrepareConfig& config, ThreadPool& pool);
PackedDataset make_dataset(std::span<const PretrainExample> examples, const Tokenizer& tokenizer,
                           const PrepareConfig& config, ThreadPool& pool);

}  // namespace needle
