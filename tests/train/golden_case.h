// Golden files as this library's types: configs, host batches, trees of parameters.
#pragma once

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <torch/torch.h>

#include "needle/core/fields.h"
#include "needle/core/json.h"
#include "needle/data/batch.h"
#include "needle/model/checkpoint.h"
#include "needle/model/released_checkpoint.h"
#include "needle/model/tensor_view.h"

#include "tests/support/golden.h"

namespace needle::test {

// A published config; the fields that are not the model's (dtype, dropout_rate) are left out.
inline ModelConfig golden_config(const Json& published) {
  const Json known = to_json(ModelConfig{});
  Json fields = Json::object();
  for (const auto& [key, value] : published.items()) {
    if (known.contains(key)) {
      fields[key] = value;
    }
  }
  return from_json<ModelConfig>(fields, "golden config");
}

// The entries "prefix..." without the prefix.
inline NamedTensors under(const NamedTensors& tensors, const std::string& prefix) {
  NamedTensors found;
  for (auto it = tensors.lower_bound(prefix); it != tensors.end() && it->first.starts_with(prefix);
       ++it) {
    found[it->first.substr(prefix.size())] = it->second;
  }
  return found;
}

template <typename T>
std::vector<T> values_of(const NamedTensors& tensors, const std::string& name) {
  const auto found = tensors.find(name);
  if (found == tensors.end()) {
    return {};
  }
  const auto wide = found->second.to(torch::kInt64).contiguous();
  std::vector<T> values;
  for (std::int64_t i = 0; i < wide.numel(); ++i) {
    values.push_back(static_cast<T>(wide.const_data_ptr<std::int64_t>()[i]));
  }
  return values;
}

// From "source", "decoder_in", "target" and, where they are there, segments and classes.
inline Batch golden_batch(const NamedTensors& tensors) {
  const auto& source = tensors.at("source");
  Batch batch;
  batch.rows = source.size(0);
  batch.enc_len = source.size(1);
  batch.dec_len = tensors.at("target").size(1);
  batch.source = values_of<TokenId>(tensors, "source");
  batch.decoder_in = values_of<TokenId>(tensors, "decoder_in");
  batch.target = values_of<TokenId>(tensors, "target");
  batch.classes = values_of<std::int8_t>(tensors, "classes");
  batch.source_segments = values_of<std::int32_t>(tensors, "encoder_segments");
  batch.decoder_segments = values_of<std::int32_t>(tensors, "decoder_segments");
  return batch;
}

// From "query_tokens" and "tool_tokens".
inline ContrastiveBatch golden_pairs(const NamedTensors& tensors) {
  const auto& queries = tensors.at("query_tokens");
  return {.rows = queries.size(0),
          .query_len = queries.size(1),
          .tool_len = tensors.at("tool_tokens").size(1),
          .queries = values_of<TokenId>(tensors, "query_tokens"),
          .tools = values_of<TokenId>(tensors, "tool_tokens")};
}

// Gradients by published path; zeros where a parameter has none, as in the reference.
inline NamedTensors released_gradients(const Needle& model) {
  NamedTensors gradients;
  for (const auto& [name, parameter] : named_parameters(model)) {
    gradients[name] = parameter.grad().defined() ? parameter.grad().detach().clone()
                                                 : torch::zeros_like(parameter).detach();
  }
  return to_released(gradients, model->config());
}

inline NamedTensors released_parameters(const Needle& model) {
  NamedTensors parameters;
  for (const auto& [name, parameter] : named_parameters(model)) {
    parameters[name] = parameter.detach();
  }
  return to_released(parameters, model->config());
}

inline double largest(const torch::Tensor& tensor) {
  return tensor.numel() == 0 ? 0.0 : tensor.abs().max().item<double>();
}

// Every entry of `expected` differs by at most relative * (its largest value) + absolute. An entry
// "path[:64]" holds the first 64 rows.
inline void expect_close(const NamedTensors& ours, const NamedTensors& expected, double relative,
                         double absolute, const std::string& where) {
  ASSERT_FALSE(expected.empty()) << where;
  for (const auto& [path, wanted] : expected) {
    SCOPED_TRACE(where + ": " + path);
    const auto found = ours.find(path.substr(0, path.find("[:")));
    ASSERT_TRUE(found != ours.end());
    const auto value =
        path.ends_with("]") ? found->second.narrow(0, 0, wanted.size(0)) : found->second;
    ASSERT_EQ(value.sizes(), wanted.sizes());
    EXPECT_LE(largest(value - wanted), relative * largest(wanted) + absolute);
  }
}

}  // namespace needle::test
