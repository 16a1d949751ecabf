// Encoded examples on disk, memory-mapped, served as batches of rows.
//
// One safetensors file: token ids (int16), classes (int8) and offsets (int64) of all examples end
// to end, and which examples form a row. Nothing is padded on disk; a packed row is put together
// when its batch is filled. The JSON metadata holds what the file was made from.
#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "needle/core/json.h"
#include "needle/data/batch.h"
#include "needle/data/encode.h"
#include "needle/data/example.h"

namespace needle {

// Of the file's layout and of everything that decides its contents: a program with another version
// makes data sets again.
inline constexpr std::string_view kDatasetVersion = "1";

// What a data set is and what it was made from; saved in its file.
struct DatasetInfo {
  std::string kind = "calls";       // or "pretrain"
  bool packed = true;               // rows hold several examples, with segment ids
  std::int64_t max_enc_len = 1024;  // no row is longer
  std::int64_t max_dec_len = 512;
  std::int64_t vocab_size = 0;  // every id is below
  std::string tokenizer_fingerprint{};
  std::string content_hash{};  // of all that decides the contents; empty if not made from files
  EncodeReport report{};

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("kind", self.kind, "calls or pretrain");
    visit("packed", self.packed, "Rows hold several examples, with segment ids");
    visit("max_enc_len", self.max_enc_len, "Longest encoder row");
    visit("max_dec_len", self.max_dec_len, "Longest decoder row");
    visit("vocab_size", self.vocab_size, "Every id is below");
    visit("tokenizer_fingerprint", self.tokenizer_fingerprint, "SHA-256 of the tokenizer");
    visit("content_hash", self.content_hash,
          "SHA-256 of inputs, settings, tokenizer and format version");
    visit("report", self.report, "What was kept, cut and dropped");
  }
};

// How long the rows of a batch are.
struct BatchShape {
  std::int64_t multiple =
      8;  // the longest row of the batch, rounded up (never above the data set's limits)
  bool full_length = false;  // always max_enc_len and max_dec_len, as the reference does
  // Above 0: exactly these, at least as long as every row; for parts of a larger batch.
  std::int64_t enc_len = 0;
  std::int64_t dec_len = 0;
};

// The padded lengths of a batch.
struct BatchLengths {
  std::int64_t enc_len = 0;
  std::int64_t dec_len = 0;
};

// Immutable, cheap to copy (shared). Safe to use from several threads.
class PackedDataset {
 public:
  // Checks every length, offset, id and class. Throws FileError or FormatError naming the path and
  // what is wrong.
  static PackedDataset open(const std::filesystem::path& path);

  const DatasetInfo& info() const;
  std::int64_t row_count() const;      // what the sampler counts
  std::int64_t example_count() const;  // as many, unless rows are packed
  std::int64_t source_tokens() const;  // of all examples, without padding
  std::int64_t target_tokens() const;
  bool has_classes() const;  // function-call rows have, pretraining rows do not

  // Fills `batch` with these rows, in this order; its vectors are reused. Segments are filled for
  // packed data sets only, classes if the data set has them. Throws Error on a row out of range or
  // an empty list.
  void fill_batch(std::span<const std::int64_t> rows, Batch& batch,
                  const BatchShape& shape = {}) const;
  Batch batch(std::span<const std::int64_t> rows, const BatchShape& shape = {}) const;

  // What a batch of these rows would be padded to.
  BatchLengths batch_lengths(std::span<const std::int64_t> rows,
                             const BatchShape& shape = {}) const;

  // One example as it was encoded (its `row` is the row number in the input).
  EncodedExample example(std::int64_t index) const;
  std::span<const std::int64_t> row_examples(
      std::int64_t row) const;  // indices of a row's examples
  std::int64_t row_target_tokens(std::int64_t row) const;

  // Retrieval pairs; all zero and empty for pretraining rows.
  std::int64_t tool_count(std::int64_t example) const;
  bool tool_called(std::int64_t example, std::int64_t tool) const;
  std::vector<TokenId> tool_ids(std::int64_t example, std::int64_t tool) const;
  std::vector<TokenId> query_ids(std::int64_t example) const;

 private:
  friend class PackedDatasetBuilder;
  struct Data;
  explicit PackedDataset(std::shared_ptr<const Data> data);
  std::shared_ptr<const Data> data_;
};

// Collects examples, packs them into rows, and makes a data set of them in memory or on disk.
// Memory: about the size of the file, whatever the number of examples added at once. Not
// thread-safe.
class PackedDatasetBuilder {
 public:
  explicit PackedDatasetBuilder(DatasetInfo info);
  ~PackedDatasetBuilder();
  PackedDatasetBuilder(const PackedDatasetBuilder&) = delete;
  PackedDatasetBuilder& operator=(const PackedDatasetBuilder&) = delete;

  // Throws DataError if an id does not fit into int16 or is not below the vocabulary's size, and
  // Error if an example is longer than the limits.
  void add(std::span<const EncodedExample> examples);
  void add_report(const EncodeReport& report);
  std::int64_t example_count() const;

  PackedDataset build();                          // in memory; the builder is empty afterwards
  void write(const std::filesystem::path& path);  // atomically; the builder is empty afterwards

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace needle
