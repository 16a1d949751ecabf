#include <algorithm>
#include <cstddef>
#include <map>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/format.h"
#include "needle/core/safetensors.h"
#include "needle/data/pack.h"
#include "needle/data/packed_dataset.h"
#include "needle/data/packed_dataset_data.h"

namespace needle {
namespace {

constexpr TokenId kMaxStoredId = 32767;

}  // namespace

struct PackedDatasetBuilder::Impl {
  std::shared_ptr<PackedDataset::Data> data = std::make_shared<PackedDataset::Data>();

  void append(std::vector<std::int16_t>& column, std::span<const TokenId> ids, std::int64_t row) {
    for (const TokenId id : ids) {
      if (id < 0 || id > kMaxStoredId || id >= data->info.vocab_size) {
        throw DataError(
            format("row {}: token id {} cannot be stored: ids go from 0 to {} here; a vocabulary "
                   "may have at most {} pieces",
                   row, id, std::min<std::int64_t>(data->info.vocab_size, kMaxStoredId + 1) - 1,
                   kMaxStoredId + 1));
      }
      column.push_back(static_cast<std::int16_t>(id));
    }
  }

  void add(const EncodedExample& example) {
    const auto length = [](const auto& ids) { return static_cast<std::int64_t>(ids.size()); };
    const DatasetInfo& info = data->info;
    NEEDLE_CHECK(example.decoder_in.size() == example.target.size() &&
                     (info.kind != "calls" || example.classes.size() == example.target.size()),
                 "row {}: {} decoder ids, {} targets, {} classes", example.row,
                 example.decoder_in.size(), example.target.size(), example.classes.size());
    NEEDLE_CHECK(
        length(example.source) <= info.max_enc_len && length(example.target) <= info.max_dec_len,
        "row {} has {} + {} tokens, the limits are {} + {}", example.row, example.source.size(),
        example.target.size(), info.max_enc_len, info.max_dec_len);
    DatasetArrays& arrays = data->arrays;
    append(arrays.source, example.source, example.row);
    append(arrays.decoder_in, example.decoder_in, example.row);
    append(arrays.target, example.target, example.row);
    append(arrays.queries, example.query_ids, example.row);
    for (const TokenClass token_class : example.classes) {
      arrays.classes.push_back(static_cast<std::int8_t>(token_class));
    }
    for (const EncodedTool& tool : example.tools) {
      append(arrays.tools, tool.ids, example.row);
      arrays.called.push_back(tool.called ? 1 : 0);
      arrays.token_offsets.push_back(length(arrays.tools));
    }
    arrays.source_offsets.push_back(length(arrays.source));
    arrays.decoder_offsets.push_back(length(arrays.target));
    arrays.query_offsets.push_back(length(arrays.queries));
    arrays.tool_offsets.push_back(length(arrays.called));
    arrays.input_rows.push_back(example.row);
  }

  std::vector<std::vector<std::int64_t>> rows() const {
    const std::int64_t examples = data->examples();
    if (!data->info.packed) {
      std::vector<std::vector<std::int64_t>> rows;
      for (std::int64_t example = 0; example < examples; ++example) {
        rows.push_back({example});
      }
      return rows;
    }
    std::vector<ExampleLength> lengths;
    for (std::int64_t example = 0; example < examples; ++example) {
      lengths.push_back({.encoder = range_at(data->arrays.source_offsets, example).size(),
                         .decoder = range_at(data->arrays.decoder_offsets, example).size()});
    }
    return pack_rows(
        lengths, {.max_enc_len = data->info.max_enc_len, .max_dec_len = data->info.max_dec_len});
  }

  std::shared_ptr<PackedDataset::Data> finish() {
    DatasetArrays& arrays = data->arrays;
    for (const std::vector<std::int64_t>& row : rows()) {
      arrays.row_examples.insert(arrays.row_examples.end(), row.begin(), row.end());
      arrays.row_offsets.push_back(static_cast<std::int64_t>(arrays.row_examples.size()));
    }
    auto finished = std::exchange(data, std::make_shared<PackedDataset::Data>());
    data->info = finished->info;
    data->info.report = {};
    return finished;
  }
};

PackedDatasetBuilder::PackedDatasetBuilder(DatasetInfo info) : impl_(std::make_unique<Impl>()) {
  NEEDLE_CHECK(info.max_enc_len >= 1 && info.max_dec_len >= 1 && info.vocab_size >= 1,
               "max_enc_len {}, max_dec_len {}, vocab_size {}", info.max_enc_len, info.max_dec_len,
               info.vocab_size);
  impl_->data->info = std::move(info);
}

PackedDatasetBuilder::~PackedDatasetBuilder() = default;

void PackedDatasetBuilder::add(std::span<const EncodedExample> examples) {
  for (const EncodedExample& example : examples) {
    impl_->add(example);
  }
}

void PackedDatasetBuilder::add_report(const EncodeReport& report) {
  impl_->data->info.report.merge(report);
}

std::int64_t PackedDatasetBuilder::example_count() const { return impl_->data->examples(); }

PackedDataset PackedDatasetBuilder::build() {
  std::shared_ptr<PackedDataset::Data> data = impl_->finish();
  data->view_own_arrays();
  return PackedDataset(std::move(data));
}

void PackedDatasetBuilder::write(const std::filesystem::path& path) {
  const std::shared_ptr<PackedDataset::Data> data = impl_->finish();
  std::map<std::string, TensorView, std::less<>> tensors;
  const auto add = [&tensors](Dtype dtype) {
    return [&tensors, dtype](std::string_view name, const auto& values) {
      tensors.emplace(name, TensorView{.dtype = dtype,
                                       .shape = {static_cast<std::int64_t>(values.size())},
                                       .bytes = bytes_of(values)});
    };
  };
  visit_offsets(data->arrays, add(Dtype::kI64));
  visit_ids(data->arrays, add(Dtype::kI16));
  visit_types(data->arrays, add(Dtype::kI8));
  write_safetensors(path, tensors,
                    {{"format", std::string(kDatasetFormat)},
                     {"version", std::string(kDatasetVersion)},
                     {"info", to_json(data->info).dump()}});
}

}  // namespace needle
