#include "needle/decode/tool_index_file.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/decode/scripted_engine.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

class ToolIndexFileTest : public ::testing::Test {
 protected:
  CachedToolIndex open(const std::vector<std::string>& tools, std::string_view model = "m",
                       const RetrieveOptions& options = {}) {
    return cached_tool_index(engine_, tokenizer_, tools, options, path_, model);
  }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "tools.index";
  Tokenizer tokenizer_ = Tokenizer::load(test::golden("tokenizer/tiny.model"));
  int embedded_ = 0;
  test::ScriptedEngine engine_{tokenizer_.vocab_size(), [](auto) { return std::vector<TokenId>(); },
                               [this](std::span<const TokenId> ids) {
                                 ++embedded_;
                                 return std::vector<float>{static_cast<float>(ids.size()), 0.5F};
                               }};
  const std::vector<std::string> tools_ = {"a", "a longer tool", "three of them are there"};
};

TEST_F(ToolIndexFileTest, EmbedsOnceAndRanksTheSame) {
  const auto first = open(tools_);
  EXPECT_FALSE(first.from_file);
  EXPECT_EQ(embedded_, 3);
  const auto second = open(tools_);
  EXPECT_TRUE(second.from_file);
  EXPECT_EQ(embedded_, 3);
  EXPECT_EQ(second.index.embeddings(), first.index.embeddings());
  const auto expected = first.index.rank("x", 3);
  const auto ranked = second.index.rank("x", 3);
  ASSERT_EQ(ranked.size(), 3U);
  for (std::size_t i = 0; i < ranked.size(); ++i) {
    EXPECT_EQ(ranked[i].index, expected[i].index);
    EXPECT_EQ(ranked[i].score, expected[i].score);
  }
}

TEST_F(ToolIndexFileTest, AnotherModelToolListOrOptionIsEmbeddedAgain) {
  open(tools_);
  EXPECT_FALSE(open(tools_, "another").from_file);
  EXPECT_FALSE(open({"a longer tool", "a", "three of them are there"}, "another").from_file);
  EXPECT_FALSE(open({"aa", " longer tool", "three of them are there"}, "another").from_file);
  EXPECT_FALSE(open(tools_, "another", {.max_tokens = 3}).from_file);
  EXPECT_TRUE(open(tools_, "another", {.max_tokens = 3}).from_file);
  EXPECT_FALSE(open({}).from_file);
  EXPECT_TRUE(open({}).from_file);
}

TEST_F(ToolIndexFileTest, ADamagedFileIsMadeAnew) {
  open(tools_);
  const std::string bytes = read_file(path_);
  for (std::size_t i = 0; i < bytes.size(); ++i) {
    std::string damaged = bytes;
    damaged[i] = static_cast<char>(damaged[i] ^ 4);
    write_file_atomic(path_, i % 2 == 0 ? damaged : bytes.substr(0, i));
    ASSERT_FALSE(open(tools_).from_file) << i;
    ASSERT_EQ(read_file(path_), bytes) << i;
  }
}

TEST_F(ToolIndexFileTest, SaysWhenItCannotWrite) {
  path_ = folder_ / "absent" / "tools.index";
  EXPECT_THROW(open(tools_), FileError);
}

}  // namespace
}  // namespace needle
