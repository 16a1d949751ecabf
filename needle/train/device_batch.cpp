#include "needle/train/device_batch.h"

#include <cstring>
#include <span>
#include <string_view>
#include <vector>

#include "needle/core/error.h"
#include "needle/data/example.h"

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

// Every array in one buffer, so that a batch is one copy to the device; int32 views of it there.
std::vector<torch::Tensor> copy_arrays(std::span<const HostArray> arrays, std::int64_t rows,
                                       const torch::Device& device) {
  std::int64_t total = 0;
  for (const auto& array : arrays) {
    check_length(array.name, array.values.size(), rows, array.length);
    total += rows * array.length;
  }
  const auto host = torch::empty({total}, torch::kInt32);
  auto* next = host.data_ptr<std::int32_t>();
  for (const auto& array : arrays) {
    if (!array.values.empty()) {
      std::memcpy(next, array.values.data(), array.values.size_bytes());
    }
    next += array.values.size();
  }
  const auto on_device = host.to(device);
  std::vector<torch::Tensor> tensors;
  std::int64_t start = 0;
  for (const auto& array : arrays) {
    tensors.push_back(on_device.narrow(0, start, rows * array.length).view({rows, array.length}));
    start += rows * array.length;
  }
  return tensors;
}

}  // namespace

DeviceBatch to_device(const Batch& batch, const torch::Device& device, std::int64_t vocab_size,
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
  const bool weighted = class_weights != nullptr && !batch.classes.empty();
  std::vector<std::int32_t> classes;
  if (weighted) {
    classes.assign(batch.classes.begin(), batch.classes.end());
    arrays.push_back({"classes", classes, batch.dec_len});
    check_range(arrays.back(), 4);
  }

  const auto tensors = copy_arrays(arrays, batch.rows, device);
  DeviceBatch result;
  result.input.source = tensors[0].to(torch::kInt64);
  result.input.decoder_in = tensors[1].to(torch::kInt64);
  result.target = tensors[2].to(torch::kInt64);
  if (packed) {
    result.input.source_segments = tensors[3].to(torch::kInt64);
    result.input.decoder_segments = tensors[4].to(torch::kInt64);
  }
  if (weighted) {
    static_assert(
        static_cast<int>(TokenClass::kStructure) == 0 && static_cast<int>(TokenClass::kName) == 1 &&
        static_cast<int>(TokenClass::kValue) == 2 && static_cast<int>(TokenClass::kKey) == 3);
    const auto table = torch::tensor({class_weights->structure, class_weights->name,
                                      class_weights->value, class_weights->key},
                                     torch::kFloat32)
                           .to(device);
    result.weights = table.index_select(0, tensors.back().flatten()).view_as(result.target);
  }
  return result;
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
  const auto tensors = copy_arrays(arrays, batch.rows, device);
  return {.queries = tensors[0].to(torch::kInt64), .tools = tensors[1].to(torch::kInt64)};
}

}  // namespace needle
