#include "needle/data/packed_dataset.h"

#include <algorithm>
#include <cstddef>
#include <cstring>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/format.h"
#include "needle/core/safetensors.h"
#include "needle/data/packed_dataset_data.h"

namespace needle {
namespace {

std::int64_t round_up(std::int64_t length, std::int64_t multiple, std::int64_t limit) {
  return std::clamp<std::int64_t>((length + multiple - 1) / multiple * multiple, 1, limit);
}

std::vector<TokenId> ids_in(const Column<std::int16_t>& column, const IndexRange& range) {
  std::vector<TokenId> ids;
  ids.reserve(static_cast<std::size_t>(range.size()));
  for (std::int64_t i = range.begin; i < range.end; ++i) {
    ids.push_back(column[i]);
  }
  return ids;
}

// Refuses a file whose parts do not fit together; everything read later relies on it.
class FileCheck {
 public:
  explicit FileCheck(const std::filesystem::path& path) : path_(path) {}

  [[noreturn]] void fail(std::string_view what) const {
    throw FormatError(
        format("{}: {}; the file is damaged, delete it to have it made again", path_, what));
  }

  const TensorView& tensor(const SafetensorsFile& file, std::string_view name, Dtype dtype) const {
    const TensorView& view = file.at(name);
    if (view.dtype != dtype || view.shape.size() != 1) {
      fail(format("tensor {}: expected one dimension of {}", name, kDtypeNames.name(dtype)));
    }
    return view;
  }

  void offsets(std::string_view name, const std::vector<std::int64_t>& values, std::int64_t items,
               std::int64_t end) const {
    if (static_cast<std::int64_t>(values.size()) != items + 1 || values.front() != 0 ||
        values.back() != end || !std::is_sorted(values.begin(), values.end())) {
      fail(format("{}: expected {} rising offsets from 0 to {}", name, items + 1, end));
    }
  }

  template <typename Stored>
  void values(std::string_view name, const Column<Stored>& column, std::int64_t limit) const {
    for (std::int64_t i = 0; i < column.size(); ++i) {
      if (column[i] < 0 || column[i] >= limit) {
        fail(format("{}[{}] is {}: expected 0 to {}", name, i, static_cast<std::int64_t>(column[i]),
                    limit - 1));
      }
    }
  }

  void each_example_once(const std::vector<std::int64_t>& row_examples,
                         std::int64_t examples) const {
    std::vector<bool> seen(static_cast<std::size_t>(examples), false);
    for (const std::int64_t example : row_examples) {
      if (example < 0 || example >= examples || seen[static_cast<std::size_t>(example)]) {
        fail(format("index/row_examples: {} is no example or appears twice", example));
      }
      seen[static_cast<std::size_t>(example)] = true;
    }
    if (static_cast<std::int64_t>(row_examples.size()) != examples) {
      fail(format("index/row_examples: {} of {} examples", row_examples.size(), examples));
    }
  }

 private:
  const std::filesystem::path& path_;
};

struct RowLengths {
  std::int64_t source = 0;
  std::int64_t decoder = 0;
};
RowLengths row_lengths(const DatasetArrays& arrays, std::int64_t row) {
  RowLengths lengths;
  const IndexRange places = range_at(arrays.row_offsets, row);
  for (std::int64_t place = places.begin; place < places.end; ++place) {
    const std::int64_t example = arrays.row_examples[static_cast<std::size_t>(place)];
    lengths.source += range_at(arrays.source_offsets, example).size();
    lengths.decoder += range_at(arrays.decoder_offsets, example).size();
  }
  return lengths;
}

DatasetInfo read_info(const SafetensorsFile& file, const FileCheck& check) {
  const auto& metadata = file.metadata();
  const auto kind = metadata.find("format");
  const auto version = metadata.find("version");
  const auto info = metadata.find("info");
  if (kind == metadata.end() || kind->second != kDatasetFormat || info == metadata.end()) {
    check.fail("this safetensors file is not a data set of needle");
  }
  if (version == metadata.end() || version->second != kDatasetVersion) {
    check.fail(format("data set version {}, this program reads {}",
                      version == metadata.end() ? "?" : version->second, kDatasetVersion));
  }
  try {
    return from_json<DatasetInfo>(parse_json(info->second, "info"), "info");
  } catch (const Error& error) {
    check.fail(error.what());
  }
}

}  // namespace

PackedDataset::PackedDataset(std::shared_ptr<const Data> data) : data_(std::move(data)) {}

PackedDataset PackedDataset::open(const std::filesystem::path& path) {
  auto data = std::make_shared<Data>();
  const FileCheck check(path);
  data->file = std::make_unique<SafetensorsFile>(path);
  const SafetensorsFile& file = *data->file;
  data->info = read_info(file, check);
  const DatasetInfo& info = data->info;
  if (info.max_enc_len < 1 || info.max_dec_len < 1 || info.vocab_size < 1) {
    check.fail("its metadata has lengths below 1");
  }
  DatasetArrays& arrays = data->arrays;
  visit_offsets(arrays, [&](std::string_view name, std::vector<std::int64_t>& values) {
    const TensorView& view = check.tensor(file, name, Dtype::kI64);
    values.resize(view.bytes.size() / sizeof(std::int64_t));
    if (!values.empty()) {
      std::memcpy(values.data(), view.bytes.data(), view.bytes.size());
    }
  });
  visit_ids(*data, [&](std::string_view name, Column<std::int16_t>& column) {
    column = Column<std::int16_t>(check.tensor(file, name, Dtype::kI16).bytes);
    check.values(name, column, info.vocab_size);
  });
  visit_types(*data, [&](std::string_view name, Column<std::int8_t>& column) {
    column = Column<std::int8_t>(check.tensor(file, name, Dtype::kI8).bytes);
    check.values(name, column, name == "types/classes" ? 4 : 2);
  });

  const std::int64_t examples = data->examples();
  check.offsets("index/source", arrays.source_offsets, examples, data->source.size());
  check.offsets("index/decoder", arrays.decoder_offsets, examples, data->target.size());
  check.offsets("index/query", arrays.query_offsets, examples, data->queries.size());
  check.offsets("index/tools", arrays.tool_offsets, examples, data->called.size());
  check.offsets("index/tool_tokens", arrays.token_offsets, data->called.size(), data->tools.size());
  check.offsets("index/rows", arrays.row_offsets, std::max<std::int64_t>(data->rows(), 0),
                examples);
  check.each_example_once(arrays.row_examples, examples);
  if (data->decoder_in.size() != data->target.size() ||
      (data->classes.size() != 0 && data->classes.size() != data->target.size())) {
    check.fail("decoder_in, target and classes differ in length");
  }
  for (std::int64_t row = 0; row < data->rows(); ++row) {
    const RowLengths lengths = row_lengths(arrays, row);
    if (lengths.source > info.max_enc_len || lengths.decoder > info.max_dec_len) {
      check.fail(
          format("row {} is longer than {} + {} tokens", row, info.max_enc_len, info.max_dec_len));
    }
  }
  return PackedDataset(std::move(data));
}

const DatasetInfo& PackedDataset::info() const { return data_->info; }
std::int64_t PackedDataset::row_count() const { return data_->rows(); }
std::int64_t PackedDataset::example_count() const { return data_->examples(); }
std::int64_t PackedDataset::source_tokens() const { return data_->source.size(); }
std::int64_t PackedDataset::target_tokens() const { return data_->target.size(); }
bool PackedDataset::has_classes() const { return data_->classes.size() != 0; }

std::span<const std::int64_t> PackedDataset::row_examples(std::int64_t row) const {
  NEEDLE_CHECK(row >= 0 && row < row_count(), "row {} of {}", row, row_count());
  const IndexRange places = range_at(data_->arrays.row_offsets, row);
  return std::span<const std::int64_t>(data_->arrays.row_examples)
      .subspan(static_cast<std::size_t>(places.begin), static_cast<std::size_t>(places.size()));
}

std::int64_t PackedDataset::row_target_tokens(std::int64_t row) const {
  NEEDLE_CHECK(row >= 0 && row < row_count(), "row {} of {}", row, row_count());
  return row_lengths(data_->arrays, row).decoder;
}

BatchLengths PackedDataset::batch_lengths(std::span<const std::int64_t> rows,
                                          const BatchShape& shape) const {
  NEEDLE_CHECK(!rows.empty(), "a batch of no rows");
  NEEDLE_CHECK(shape.multiple >= 1, "multiple is {}", shape.multiple);
  const Data& data = *data_;
  RowLengths longest;
  for (const std::int64_t row : rows) {
    NEEDLE_CHECK(row >= 0 && row < row_count(), "row {} of {}", row, row_count());
    const RowLengths lengths = row_lengths(data.arrays, row);
    longest.source = std::max(longest.source, lengths.source);
    longest.decoder = std::max(longest.decoder, lengths.decoder);
  }
  const auto& info = data.info;
  BatchLengths lengths{.enc_len = info.max_enc_len, .dec_len = info.max_dec_len};
  if (!shape.full_length) {
    lengths = {.enc_len = round_up(longest.source, shape.multiple, info.max_enc_len),
               .dec_len = round_up(longest.decoder, shape.multiple, info.max_dec_len)};
  }
  NEEDLE_CHECK((shape.enc_len == 0 || shape.enc_len >= longest.source) &&
                   (shape.dec_len == 0 || shape.dec_len >= longest.decoder),
               "rows of {} + {} tokens in a batch of {} + {}", longest.source, longest.decoder,
               shape.enc_len, shape.dec_len);
  return {.enc_len = shape.enc_len > 0 ? shape.enc_len : lengths.enc_len,
          .dec_len = shape.dec_len > 0 ? shape.dec_len : lengths.dec_len};
}

void PackedDataset::fill_batch(std::span<const std::int64_t> rows, Batch& batch,
                               const BatchShape& shape) const {
  const Data& data = *data_;
  const auto& info = data.info;
  const BatchLengths lengths = batch_lengths(rows, shape);
  batch.rows = static_cast<std::int64_t>(rows.size());
  batch.enc_len = lengths.enc_len;
  batch.dec_len = lengths.dec_len;
  const auto enc_size = static_cast<std::size_t>(batch.rows * batch.enc_len);
  const auto dec_size = static_cast<std::size_t>(batch.rows * batch.dec_len);
  batch.source.assign(enc_size, kPadId);
  batch.decoder_in.assign(dec_size, kPadId);
  batch.target.assign(dec_size, kPadId);
  batch.classes.assign(has_classes() ? dec_size : 0, 0);
  batch.source_segments.assign(info.packed ? enc_size : 0, 0);
  batch.decoder_segments.assign(info.packed ? dec_size : 0, 0);

  for (std::size_t b = 0; b < rows.size(); ++b) {
    auto enc = static_cast<std::size_t>(b) * static_cast<std::size_t>(batch.enc_len);
    auto dec = static_cast<std::size_t>(b) * static_cast<std::size_t>(batch.dec_len);
    std::int32_t segment = 0;
    for (const std::int64_t example : row_examples(rows[b])) {
      ++segment;
      const IndexRange source = range_at(data.arrays.source_offsets, example);
      for (std::int64_t i = source.begin; i < source.end; ++i, ++enc) {
        batch.source[enc] = data.source[i];
        if (info.packed) {
          batch.source_segments[enc] = segment;
        }
      }
      const IndexRange decoder = range_at(data.arrays.decoder_offsets, example);
      for (std::int64_t i = decoder.begin; i < decoder.end; ++i, ++dec) {
        batch.decoder_in[dec] = data.decoder_in[i];
        batch.target[dec] = data.target[i];
        if (has_classes()) {
          batch.classes[dec] = data.classes[i];
        }
        if (info.packed) {
          batch.decoder_segments[dec] = segment;
        }
      }
    }
  }
}

Batch PackedDataset::batch(std::span<const std::int64_t> rows, const BatchShape& shape) const {
  Batch batch;
  fill_batch(rows, batch, shape);
  return batch;
}

EncodedExample PackedDataset::example(std::int64_t index) const {
  NEEDLE_CHECK(index >= 0 && index < example_count(), "example {} of {}", index, example_count());
  const Data& data = *data_;
  const IndexRange decoder = range_at(data.arrays.decoder_offsets, index);
  EncodedExample example{.row = data.arrays.input_rows[static_cast<std::size_t>(index)],
                         .source = ids_in(data.source, range_at(data.arrays.source_offsets, index)),
                         .decoder_in = ids_in(data.decoder_in, decoder),
                         .target = ids_in(data.target, decoder)};
  for (std::int64_t i = decoder.begin; has_classes() && i < decoder.end; ++i) {
    example.classes.push_back(static_cast<TokenClass>(data.classes[i]));
  }
  example.query_ids = query_ids(index);
  for (std::int64_t tool = 0; tool < tool_count(index); ++tool) {
    example.tools.push_back({.called = tool_called(index, tool), .ids = tool_ids(index, tool)});
  }
  return example;
}

std::int64_t PackedDataset::tool_count(std::int64_t example) const {
  NEEDLE_CHECK(example >= 0 && example < example_count(), "example {} of {}", example,
               example_count());
  return range_at(data_->arrays.tool_offsets, example).size();
}

bool PackedDataset::tool_called(std::int64_t example, std::int64_t tool) const {
  NEEDLE_CHECK(tool >= 0 && tool < tool_count(example), "tool {} of {}", tool, tool_count(example));
  return data_->called[range_at(data_->arrays.tool_offsets, example).begin + tool] != 0;
}

std::vector<TokenId> PackedDataset::tool_ids(std::int64_t example, std::int64_t tool) const {
  NEEDLE_CHECK(tool >= 0 && tool < tool_count(example), "tool {} of {}", tool, tool_count(example));
  const std::int64_t index = range_at(data_->arrays.tool_offsets, example).begin + tool;
  return ids_in(data_->tools, range_at(data_->arrays.token_offsets, index));
}

std::vector<TokenId> PackedDataset::query_ids(std::int64_t example) const {
  NEEDLE_CHECK(example >= 0 && example < example_count(), "example {} of {}", example,
               example_count());
  return ids_in(data_->queries, range_at(data_->arrays.query_offsets, example));
}

}  // namespace needle
