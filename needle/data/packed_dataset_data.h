// Inside of PackedDataset: what its file holds, shared by reader and builder. Not for others.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <span>
#include <string_view>
#include <vector>

#include "needle/core/safetensors.h"
#include "needle/data/packed_dataset.h"

namespace needle {

inline constexpr std::string_view kDatasetFormat = "needle-dataset";

// Numbers of one width at any alignment; does not own them.
template <typename Stored>
class Column {
 public:
  Column() = default;
  explicit Column(std::span<const std::byte> bytes) : bytes_(bytes) {}

  std::int64_t size() const { return static_cast<std::int64_t>(bytes_.size() / sizeof(Stored)); }
  Stored operator[](std::int64_t index) const {
    Stored value;
    std::memcpy(&value, bytes_.data() + static_cast<std::size_t>(index) * sizeof(Stored),
                sizeof(Stored));
    return value;
  }

 private:
  std::span<const std::byte> bytes_;
};

template <typename T>
std::span<const std::byte> bytes_of(const std::vector<T>& items) {
  return std::as_bytes(std::span<const T>(items));
}

// What a builder collects and a file holds. Offsets: item i is [offset[i], offset[i + 1]).
struct DatasetArrays {
  std::vector<std::int64_t> source_offsets{0};
  std::vector<std::int64_t> decoder_offsets{0};  // of decoder_in, target and classes
  std::vector<std::int64_t> query_offsets{0};
  std::vector<std::int64_t> tool_offsets{0};   // an example's tools
  std::vector<std::int64_t> token_offsets{0};  // a tool's tokens
  std::vector<std::int64_t> row_offsets{0};    // a row's places in row_examples
  std::vector<std::int64_t> row_examples;
  std::vector<std::int64_t> input_rows;  // an example's row in the input
  std::vector<std::int16_t> source, decoder_in, target, queries, tools;
  std::vector<std::int8_t> classes, called;
};

// Tensor names sort by width, so that every tensor begins at a multiple of it.
template <typename Self, typename Visitor>
void visit_offsets(Self& arrays, Visitor&& visit) {
  visit("index/source", arrays.source_offsets);
  visit("index/decoder", arrays.decoder_offsets);
  visit("index/query", arrays.query_offsets);
  visit("index/tools", arrays.tool_offsets);
  visit("index/tool_tokens", arrays.token_offsets);
  visit("index/rows", arrays.row_offsets);
  visit("index/row_examples", arrays.row_examples);
  visit("index/input_rows", arrays.input_rows);
}
template <typename Self, typename Visitor>
void visit_ids(Self& arrays, Visitor&& visit) {
  visit("tokens/source", arrays.source);
  visit("tokens/decoder_in", arrays.decoder_in);
  visit("tokens/target", arrays.target);
  visit("tokens/queries", arrays.queries);
  visit("tokens/tools", arrays.tools);
}
template <typename Self, typename Visitor>
void visit_types(Self& arrays, Visitor&& visit) {
  visit("types/classes", arrays.classes);
  visit("types/called", arrays.called);
}

struct PackedDataset::Data {
  DatasetInfo info;
  std::unique_ptr<SafetensorsFile> file;  // owner of the columns' bytes, or:
  DatasetArrays arrays;                   // (of a mapped file, only the offsets are copied here)
  Column<std::int16_t> source, decoder_in, target, queries, tools;
  Column<std::int8_t> classes, called;

  std::int64_t examples() const { return static_cast<std::int64_t>(arrays.input_rows.size()); }
  std::int64_t rows() const { return static_cast<std::int64_t>(arrays.row_offsets.size()) - 1; }

  void view_own_arrays() {
    source = Column<std::int16_t>(bytes_of(arrays.source));
    decoder_in = Column<std::int16_t>(bytes_of(arrays.decoder_in));
    target = Column<std::int16_t>(bytes_of(arrays.target));
    queries = Column<std::int16_t>(bytes_of(arrays.queries));
    tools = Column<std::int16_t>(bytes_of(arrays.tools));
    classes = Column<std::int8_t>(bytes_of(arrays.classes));
    called = Column<std::int8_t>(bytes_of(arrays.called));
  }
};

// [begin, end) of item `index`.
struct IndexRange {
  std::int64_t begin = 0;
  std::int64_t end = 0;
  std::int64_t size() const { return end - begin; }
};
inline IndexRange range_at(const std::vector<std::int64_t>& offsets, std::int64_t index) {
  const auto i = static_cast<std::size_t>(index);
  return {offsets[i], offsets[i + 1]};
}

}  // namespace needle
