// A model and batches small enough to train in a unit test.
#pragma once

#include <cstdint>
#include <vector>

#include "needle/core/random.h"
#include "needle/data/batch.h"
#include "needle/model/init.h"
#include "needle/model/needle.h"

namespace needle::test {

inline ModelConfig tiny_config() {
  return {.vocab_size = 40,
          .d_model = 32,
          .num_heads = 4,
          .num_kv_heads = 2,
          .num_encoder_layers = 1,
          .num_decoder_layers = 2,
          .max_seq_len = 32,
          .contrastive_dim = 8};
}

inline Needle tiny_model(std::uint64_t seed = 1, double dropout_rate = 0.0) {
  Needle model(tiny_config(), dropout_rate);
  init_parameters(model, InitMethod::kReference, seed);
  return model;
}

// The answer repeats the source backwards, so there is something to learn. Rows differ in length.
inline Batch tiny_batch(std::int64_t rows, std::uint64_t seed) {
  Random random(seed);
  Batch batch{.rows = rows, .enc_len = 6, .dec_len = 7};
  for (std::int64_t row = 0; row < rows; ++row) {
    const std::int64_t length = 3 + random.below(4);
    std::vector<TokenId> words;
    for (std::int64_t i = 0; i < length; ++i) {
      words.push_back(static_cast<TokenId>(6 + random.below(34)));
    }
    for (std::int64_t i = 0; i < batch.enc_len; ++i) {
      batch.source.push_back(i < length ? words[static_cast<std::size_t>(i)] : kPadId);
    }
    for (std::int64_t i = 0; i < batch.dec_len; ++i) {
      const auto word = [&](std::int64_t k) {
        return words[static_cast<std::size_t>(length - 1 - k)];
      };
      batch.decoder_in.push_back(i == 0 ? kEosId : i <= length ? word(i - 1) : kPadId);
      batch.target.push_back(i < length ? word(i) : i == length ? kEosId : kPadId);
      batch.classes.push_back(static_cast<std::int8_t>(i < length ? i % 4 : 0));
    }
  }
  return batch;
}

inline ContrastiveBatch tiny_pairs(std::int64_t rows, std::uint64_t seed) {
  Random random(seed);
  ContrastiveBatch batch{.rows = rows, .query_len = 4, .tool_len = 5};
  for (std::int64_t i = 0; i < rows * 4; ++i) {
    batch.queries.push_back(static_cast<TokenId>(6 + random.below(34)));
  }
  for (std::int64_t i = 0; i < rows * 5; ++i) {
    batch.tools.push_back(static_cast<TokenId>(6 + random.below(34)));
  }
  return batch;
}

}  // namespace needle::test
