// Streaming readers of JSONL files, plain or gzip, whose errors name file, line and column.
//
// One object a line. Unknown columns are ignored; `tools` and `answers` may be JSON strings or real
// arrays. A byte order mark, blank lines and Windows line ends are accepted; invalid UTF-8 is an
// error with its column.
#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "needle/data/example.h"

namespace needle {

// What is wrong with one line. `column` counts bytes from 1; 0: the line as a whole.
struct RowProblem {
  std::string file;
  std::int64_t line = 0;
  std::int64_t column = 0;
  std::string message;

  std::string text() const;  // "train.jsonl:12:5: expected ',' or '}'"
};

enum class RowPolicy {
  kStrict,   // the first bad row throws DataError
  kLenient,  // bad rows are left out and listed
};

struct ReadOptions {
  RowPolicy policy = RowPolicy::kStrict;
  std::int64_t max_rows = 0;  // good rows; 0: all
  std::size_t max_line_bytes = std::size_t{64}
                               << 20;  // a longer line is a bad row and is never held in memory
  std::int64_t max_problems = 1000;    // kept in the report; `bad_rows` counts them all
};

struct ReadReport {
  std::int64_t rows = 0;      // good ones, handed to the visitor
  std::int64_t bad_rows = 0;  // only with RowPolicy::kLenient
  std::int64_t blank_lines = 0;
  std::vector<RowProblem> problems;
};

// Lines of a text file, plain or gzip (told by content, not by name). Not thread-safe.
class LineReader {
 public:
  // Throws FileError if the file cannot be opened.
  explicit LineReader(const std::filesystem::path& path,
                      std::size_t max_line_bytes = std::size_t{64} << 20);
  ~LineReader();
  LineReader(const LineReader&) = delete;
  LineReader& operator=(const LineReader&) = delete;

  // The next line without its line end; false at the end of the file. `text()` is valid until the
  // next call. Throws FileError when reading fails, FormatError when a gzip stream is damaged or
  // cut.
  bool next();
  std::string_view text() const;
  std::int64_t number() const;  // from 1
  bool too_long() const;        // longer than the limit: text() holds its beginning

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Each visits the file's rows in order and keeps one row in memory. Throws FileError, FormatError
// (gzip) and, when strict, DataError at the first bad row.

// Rows with `query`, `tools` and `answers`.
ReadReport for_each_call_example(const std::filesystem::path& path,
                                 const std::function<void(CallExample)>& visit,
                                 const ReadOptions& options = {});
// Rows with `query`, `query_seed_text`, `synthetic_answer`; absent or null fields are empty.
ReadReport for_each_pretrain_example(const std::filesystem::path& path,
                                     const std::function<void(PretrainExample)>& visit,
                                     const ReadOptions& options = {});
// The texts a tokenizer learns from, edges stripped, empty ones left out: `text`, or `query`,
// `tools`, `answers`, or the fields of a pretraining row, as far as a row has them. A row with none
// of them is a bad row.
ReadReport for_each_text(const std::filesystem::path& path,
                         const std::function<void(std::string_view)>& visit,
                         const ReadOptions& options = {});

// All rows of a file, strictly.
std::vector<CallExample> read_call_examples(const std::filesystem::path& path);
std::vector<PretrainExample> read_pretrain_examples(const std::filesystem::path& path);

// The row as it is written to JSONL: `tools` and `answers` as JSON strings; ends in a newline.
std::string to_jsonl(const CallExample& example);

}  // namespace needle
