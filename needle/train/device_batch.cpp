#include "needle/train/device_batch.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cstring>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "needle/core/error.h"
#include "needle/data/example.h"
#include "needle/train/device.h"

namespace needle {
namespace {

// One host array of a batch, [rows, length].
struct HostArray {
  std::string_view name;
  std::span<const std::int32_t> values;
  std::int64_t length = 0;
};

static_assert(sizeof(TokenId) == sizeof(std::int32_t), "ids are copied as they lie");

void check_length(std::string_view name, std::size_t found, std::int64_t rows,
                  std::int64_t length) {
  NEEDLE_CHECK(found == static_cast<std::size_t>(rows * length),
               "batch.{} has {} values, expected {} rows of {}", name, found, rows, length);
}

void check_range(const HostArray& array, std::int64_t end) {
  for (std::size_t i = 0; i < array.values.size(); ++i) {
    if (array.values[i] < 0 || array.values[i] >= end) {
      const auto row = static_cast<std::int64_t>(i) / array.length;
      throw DataError(
          format("batch.{}: row {}, position {}: {} is not in 0..{}; is the data set of another "
                 "tokenizer than the model?",
                 array.name, row, static_cast<std::int64_t>(i) - row * array.length,
                 array.values[i], end - 1));
    }
  }
}

// Every array in one buffer, int32 [total], ready to be copied.
torch::Tensor pack_arrays(std::span<const HostArray> arrays, std::int64_t rows,
                          const torch::Device& device) {
  std::int64_t total = 0;
  for (const auto& array : arrays) {
    check_length(array.name, array.values.size(), rows, array.length);
    total += rows * array.length;
  }
  auto host = empty_staging({total}, torch::kInt32, device);
  auto* next = host.data_ptr<std::int32_t>();
  for (const auto& array : arrays) {
    if (!array.values.empty()) {
      std::memcpy(next, array.values.data(), array.values.size_bytes());
    }
    next += array.values.size();
  }
  return host;
}

// The largest number of a segment, if each row has them as ModelInput::most_segments asks; else 0.
std::int64_t numbered_segments(const HostArray& array) {
  std::int32_t most = 0;
  for (std::size_t i = 0; i < array.values.size(); ++i) {
    const std::int32_t now = array.values[i];
    const bool first = static_cast<std::int64_t>(i) % array.length == 0;
    const std::int32_t before = first ? now : array.values[i - 1];
    if (now < 0 || (now != 0 && now < before) || (now != 0 && before == 0 && !first)) {
      return 0;
    }
    most = std::max(most, now);
  }
  return most;
}

// Takes [rows, length] after [rows, length] from the buffer.
class Unpacker {
 public:
  Unpacker(const torch::Tensor& buffer, std::int64_t rows) : buffer_(buffer), rows_(rows) {}
  torch::Tensor next(std::int64_t length) {
    const auto array = buffer_.narrow(0, start_, rows_ * length).view({rows_, length});
    start_ += rows_ * length;
    return array;
  }
  torch::Tensor next_ids(std::int64_t length) { return next(length).to(torch::kInt64); }

 private:
  torch::Tensor buffer_;
  std::int64_t rows_;
  std::int64_t start_ = 0;
};

}  // namespace

PackedBatch pack_batch(const Batch& batch, const torch::Device& device, std::int64_t vocab_size,
                       const ClassWeights* class_weights) {
  NEEDLE_CHECK(batch.rows > 0 && batch.enc_len > 0 && batch.dec_len > 0,
               "a batch of {} rows of {} and {} tokens", batch.rows, batch.enc_len, batch.dec_len);
  std::vector<HostArray> arrays{{"source", batch.source, batch.enc_len},
                                {"decoder_in", batch.decoder_in, batch.dec_len},
                                {"target", batch.target, batch.dec_len}};
  for (const auto& array : arrays) {
    check_range(array, vocab_size);
  }
  const bool packed = !batch.source_segments.empty() || !batch.decoder_segments.empty();
  if (packed) {
    arrays.push_back({"source_segments", batch.source_segments, batch.enc_len});
    arrays.push_back({"decoder_segments", batch.decoder_segments, batch.dec_len});
  }
  const std::int64_t of_source = packed ? numbered_segments(arrays[3]) : 0;
  const std::int64_t of_decoder = packed ? numbered_segments(arrays[4]) : 0;
  const bool weighted = class_weights != nullptr && !batch.classes.empty();
  std::vector<std::int32_t> weights;  // the bits of float32: they travel with the rest
  if (weighted) {
    weights.assign(batch.classes.begin(), batch.classes.end());
    arrays.push_back({"classes", weights, batch.dec_len});
    check_range(arrays.back(), 4);
    static_assert(
        static_cast<int>(TokenClass::kStructure) == 0 && static_cast<int>(TokenClass::kName) == 1 &&
        static_cast<int>(TokenClass::kValue) == 2 && static_cast<int>(TokenClass::kKey) == 3);
    const std::array<double, 4> table{class_weights->structure, class_weights->name,
                                      class_weights->value, class_weights->key};
    for (std::int32_t& value : weights) {
      value =
          std::bit_cast<std::int32_t>(static_cast<float>(table[static_cast<std::size_t>(value)]));
    }
  }

  return {.values = pack_arrays(arrays, batch.rows, device),
          .layout = {.rows = batch.rows,
                     .enc_len = batch.enc_len,
                     .dec_len = batch.dec_len,
                     .packed = packed,
                     .weighted = weighted,
                     .most_segments =
                         of_source > 0 && of_decoder > 0
                             ? static_cast<std::int64_t>(std::bit_ceil(static_cast<std::uint64_t>(
                                   std::max({of_source, of_decoder, std::int64_t{8}}))))
                             : 0}};
}

DeviceBatch unpack_batch(const torch::Tensor& values, const BatchLayout& layout) {
  Unpacker arrays(values, layout.rows);
  DeviceBatch result;
  result.input.source = arrays.next_ids(layout.enc_len);
  result.input.decoder_in = arrays.next_ids(layout.dec_len);
  result.target = arrays.next_ids(layout.dec_len);
  if (layout.packed) {
    result.input.source_segments = arrays.next_ids(layout.enc_len);
    result.input.decoder_segments = arrays.next_ids(layout.dec_len);
    result.input.most_segments = layout.most_segments;
  }
  if (layout.weighted) {
    result.weights = arrays.next(layout.dec_len).view(torch::kFloat32);
  }
  return result;
}

DeviceBatch to_device(const Batch& batch, const torch::Device& device, std::int64_t vocab_size,
                      const ClassWeights* class_weights) {
  const PackedBatch packed = pack_batch(batch, device, vocab_size, class_weights);
  return unpack_batch(copy_to_device(packed.values, device), packed.layout);
}

DeviceContrastiveBatch to_device(const ContrastiveBatch& batch, const torch::Device& device,
                                 std::int64_t vocab_size) {
  NEEDLE_CHECK(batch.rows > 0 && batch.query_len > 0 && batch.tool_len > 0,
               "a contrastive batch of {} rows of {} and {} tokens", batch.rows, batch.query_len,
               batch.tool_len);
  const std::vector<HostArray> arrays{{"queries", batch.queries, batch.query_len},
                                      {"tools", batch.tools, batch.tool_len}};
  for (const auto& array : arrays) {
    check_range(array, vocab_size);
  }
  Unpacker values(copy_to_device(pack_arrays(arrays, batch.rows, device), device), batch.rows);
  auto queries = values.next_ids(batch.query_len);
  return {.queries = std::move(queries), .tools = values.next_ids(batch.tool_len)};
}

}  // namespace needle
