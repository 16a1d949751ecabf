#include "needle/data/prepare.h"

#include <algorithm>
#include <cstddef>
#include <optional>
#include <system_error>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/core/format.h"
#include "needle/core/json.h"

namespace needle {
namespace {

constexpr std::size_t kRowsPerChunk = 4096;  // in memory at once, as text and as ids

DatasetInfo dataset_info(const Tokenizer& tokenizer, const PrepareConfig& config) {
  return {.kind = std::string(kRowKindNames.name(config.kind)),
          .packed = config.pack,
          .max_enc_len = config.prompt.max_enc_len,
          .max_dec_len = config.prompt.max_dec_len,
          .vocab_size = tokenizer.vocab_size(),
          .tokenizer_fingerprint = tokenizer.fingerprint()};
}

void check_config(const PrepareConfig& config) {
  if (config.prompt.max_enc_len < 3 || config.prompt.max_dec_len < 4) {
    throw ConfigError(
        format("prompt.max_enc_len is {} and prompt.max_dec_len is {}; at least 3 and 4 are needed",
               config.prompt.max_enc_len, config.prompt.max_dec_len));
  }
  if (config.encode.max_tool_len < 1) {
    throw ConfigError(
        format("encode.max_tool_len is {}; at least 1 is needed", config.encode.max_tool_len));
  }
}

EncodedExamples encode_chunk(std::span<const CallExample> rows, const Tokenizer& tokenizer,
                             const PrepareConfig& config, ThreadPool& pool, std::int64_t first) {
  return encode_call_examples(rows, tokenizer, config.prompt, config.encode, pool, first);
}
EncodedExamples encode_chunk(std::span<const PretrainExample> rows, const Tokenizer& tokenizer,
                             const PrepareConfig& config, ThreadPool& pool, std::int64_t first) {
  return encode_pretrain_examples(rows, tokenizer, config.prompt, config.encode, pool, first);
}

// Collects rows of one kind and hands them on in chunks.
template <typename Row>
class ChunkEncoder {
 public:
  ChunkEncoder(const Tokenizer& tokenizer, const PrepareConfig& config, ThreadPool& pool,
               PackedDatasetBuilder& builder, const PrepareProgress& progress)
      : tokenizer_(tokenizer),
        config_(config),
        pool_(pool),
        builder_(builder),
        progress_(progress) {}

  void add(Row row) {
    chunk_.push_back(std::move(row));
    if (chunk_.size() == kRowsPerChunk) {
      encode(chunk_);
      chunk_.clear();
    }
  }

  EncodeReport finish() {
    encode(chunk_);
    chunk_.clear();
    return std::exchange(report_, {});
  }

  void encode(std::span<const Row> rows) {
    for (std::size_t begin = 0; begin < rows.size(); begin += kRowsPerChunk) {
      const auto part = rows.subspan(begin, std::min(kRowsPerChunk, rows.size() - begin));
      const EncodedExamples encoded = encode_chunk(part, tokenizer_, config_, pool_, report_.rows);
      builder_.add(encoded.examples);
      builder_.add_report(encoded.report);
      report_.merge(encoded.report);
      if (progress_) {
        progress_(report_.rows);
      }
    }
  }

 private:
  const Tokenizer& tokenizer_;
  const PrepareConfig& config_;
  ThreadPool& pool_;
  PackedDatasetBuilder& builder_;
  const PrepareProgress& progress_;
  std::vector<Row> chunk_;
  EncodeReport report_;
};

void check_not_empty(const PackedDatasetBuilder& builder, const EncodeReport& report,
                     std::string_view where) {
  if (builder.example_count() == 0) {
    throw DataError(format("{}: no example is left to use: {}", where, report.text()));
  }
}

ReadReport read_rows(const std::filesystem::path& path, const ReadOptions& options,
                     ChunkEncoder<CallExample>& encoder) {
  return for_each_call_example(
      path, [&](CallExample row) { encoder.add(std::move(row)); }, options);
}
ReadReport read_rows(const std::filesystem::path& path, const ReadOptions& options,
                     ChunkEncoder<PretrainExample>& encoder) {
  return for_each_pretrain_example(
      path, [&](PretrainExample row) { encoder.add(std::move(row)); }, options);
}

std::string input_names(std::span<const std::filesystem::path> inputs) {
  std::string names;
  for (const std::filesystem::path& input : inputs) {
    names += (names.empty() ? "" : ", ") + input.string();
  }
  return names;
}

template <typename Row>
std::vector<RowProblem> encode_files(std::span<const std::filesystem::path> inputs,
                                     ChunkEncoder<Row> encoder, const PrepareConfig& config,
                                     const PackedDatasetBuilder& builder) {
  std::vector<RowProblem> problems;
  ReadOptions options{.policy = config.skip_bad_rows ? RowPolicy::kLenient : RowPolicy::kStrict};
  std::int64_t rows = 0;
  for (const std::filesystem::path& input : inputs) {
    if (config.max_rows > 0) {
      options.max_rows = config.max_rows - rows;
      if (options.max_rows <= 0) {
        break;
      }
    }
    ReadReport report = read_rows(input, options, encoder);
    rows += report.rows;
    problems.insert(problems.end(), std::make_move_iterator(report.problems.begin()),
                    std::make_move_iterator(report.problems.end()));
  }
  check_not_empty(builder, encoder.finish(), input_names(inputs));
  return problems;
}

// The stored data set if it is whole and made of the same things.
std::optional<PackedDataset> open_if_same(const std::filesystem::path& path,
                                          const std::string& hash) {
  std::error_code ignored;
  if (!std::filesystem::exists(path, ignored)) {
    return std::nullopt;
  }
  try {
    PackedDataset dataset = PackedDataset::open(path);
    if (dataset.info().content_hash == hash) {
      return dataset;
    }
  } catch (const FormatError&) {  // damaged or of another version: made again
  }
  return std::nullopt;
}

template <typename Row>
PackedDataset make_in_memory(std::span<const Row> examples, const Tokenizer& tokenizer,
                             PrepareConfig config, RowKind kind, ThreadPool& pool) {
  config.kind = kind;
  check_config(config);
  PackedDatasetBuilder builder(dataset_info(tokenizer, config));
  const PrepareProgress no_progress;
  ChunkEncoder<Row> encoder(tokenizer, config, pool, builder, no_progress);
  encoder.encode(examples);
  check_not_empty(builder, encoder.finish(), "these rows");
  return builder.build();
}

}  // namespace

std::string content_hash(std::span<const std::filesystem::path> inputs, const Tokenizer& tokenizer,
                         const PrepareConfig& config) {
  Json files = Json::array();
  for (const std::filesystem::path& input : inputs) {
    files.push_back(sha256_file(input));
  }
  const Json contents{{"version", kDatasetVersion},
                      {"inputs", std::move(files)},
                      {"tokenizer", tokenizer.fingerprint()},
                      {"config", to_json(config)}};
  return sha256_hex(std::string_view(contents.dump()));
}

PreparedDataset prepare_dataset(std::span<const std::filesystem::path> inputs,
                                const Tokenizer& tokenizer, const PrepareConfig& config,
                                const std::filesystem::path& cache_folder, ThreadPool& pool,
                                const PrepareProgress& progress) {
  NEEDLE_CHECK(!inputs.empty(), "no input files");
  check_config(config);
  DatasetInfo info = dataset_info(tokenizer, config);
  info.content_hash = content_hash(inputs, tokenizer, config);
  const std::filesystem::path path =
      cache_folder / format("{}-{}.safetensors", info.kind, info.content_hash.substr(0, 16));
  if (std::optional<PackedDataset> stored = open_if_same(path, info.content_hash)) {
    return {.dataset = *std::move(stored), .path = path, .reused = true, .problems = {}};
  }

  PackedDatasetBuilder builder(std::move(info));
  std::vector<RowProblem> problems;
  if (config.kind == RowKind::kCalls) {
    problems =
        encode_files(inputs, ChunkEncoder<CallExample>(tokenizer, config, pool, builder, progress),
                     config, builder);
  } else {
    problems = encode_files(
        inputs, ChunkEncoder<PretrainExample>(tokenizer, config, pool, builder, progress), config,
        builder);
  }
  std::error_code error;
  std::filesystem::create_directories(cache_folder, error);
  if (error) {
    throw FileError(format("{}: cannot make the folder: {}", cache_folder, error.message()));
  }
  builder.write(path);
  return {.dataset = PackedDataset::open(path),
          .path = path,
          .reused = false,
          .problems = std::move(problems)};
}

PackedDataset make_dataset(std::span<const CallExample> examples, const Tokenizer& tokenizer,
                           const PrepareConfig& config, ThreadPool& pool) {
  return make_in_memory(examples, tokenizer, config, RowKind::kCalls, pool);
}

PackedDataset make_dataset(std::span<const PretrainExample> examples, const Tokenizer& tokenizer,
                           const PrepareConfig& config, ThreadPool& pool) {
  return make_in_memory(examples, tokenizer, config, RowKind::kPretrain, pool);
}

}  // namespace needle
