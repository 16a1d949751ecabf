// What several tests of this folder need: a tokenizer, and small rows and data sets.
#pragma once

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>
#include <zlib.h>

#include "needle/core/format.h"
#include "needle/core/random.h"
#include "needle/data/packed_dataset.h"
#include "needle/text/tokenizer.h"

#include "tests/support/golden.h"

namespace needle::test {

// The SentencePiece model of the golden folder, whatever its name.
inline Tokenizer golden_tokenizer() {
  for (const auto& entry : std::filesystem::directory_iterator(golden("tokenizer"))) {
    if (entry.path().extension() == ".model") {
      return Tokenizer::load(entry.path());
    }
  }
  throw std::runtime_error("no *.model in " + golden("tokenizer").string());
}

inline void write_text(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
}

inline void write_gzip(const std::filesystem::path& path, std::string_view text) {
  gzFile file = gzopen(path.c_str(), "wb");
  ASSERT_NE(file, nullptr);
  ASSERT_EQ(gzwrite(file, text.data(), static_cast<unsigned>(text.size())),
            static_cast<int>(text.size()));
  gzclose(file);
}

inline CallExample timer_row(int minutes) {
  return {.query = format("set a timer for {} minutes", minutes),
          .tools = R"([{"name":"setTimer","description":"Start.","parameters":{"minutes":)"
                   R"({"type":"integer","description":"How long.","required":true}}},)"
                   R"({"name":"tell_joke","description":"Joke.","parameters":{}}])",
          .answers = format(R"([{{"name":"setTimer","arguments":{{"minutes":{}}}}}])", minutes)};
}

inline std::vector<CallExample> timer_rows(int count) {
  std::vector<CallExample> rows;
  for (int i = 0; i < count; ++i) {
    rows.push_back(timer_row(i + 1));
  }
  return rows;
}

// Random ids of ragged lengths; every id is at least 6, so none is padding.
inline std::vector<EncodedExample> random_examples(std::int64_t count, std::int64_t max_enc,
                                                   std::int64_t max_dec, std::uint64_t seed) {
  Random random(seed);
  const auto ids = [&random](std::size_t length) {
    std::vector<TokenId> row(length);
    for (TokenId& id : row) {
      id = static_cast<TokenId>(6 + random.below(500));
    }
    return row;
  };
  std::vector<EncodedExample> examples;
  for (std::int64_t i = 0; i < count; ++i) {
    const std::size_t decoder = 1 + random.below(static_cast<std::uint32_t>(max_dec));
    EncodedExample example{.row = 10 * i,
                           .source = ids(1 + random.below(static_cast<std::uint32_t>(max_enc))),
                           .decoder_in = ids(decoder),
                           .target = ids(decoder)};
    for (std::size_t k = 0; k < decoder; ++k) {
      example.classes.push_back(static_cast<TokenClass>(random.below(4)));
    }
    example.query_ids = ids(random.below(9));
    for (std::uint32_t tool = random.below(4); tool > 0; --tool) {
      example.tools.push_back({.called = random.below(2) == 1, .ids = ids(1 + random.below(20))});
    }
    examples.push_back(std::move(example));
  }
  return examples;
}

inline DatasetInfo test_info(std::int64_t max_enc, std::int64_t max_dec, bool packed = true) {
  return {.packed = packed, .max_enc_len = max_enc, .max_dec_len = max_dec, .vocab_size = 512};
}

}  // namespace needle::test
