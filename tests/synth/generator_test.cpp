#include "needle/synth/generator.h"

#include <algorithm>
#include <cctype>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

std::vector<Tool> quickstart_tools() {
  return parse_tools_text(read_file(test::source_dir() / "data/quickstart_tools.json"));
}

// Every text value of a call must be found in the query, apart from an enum's underscores.
bool grounded(const JsonValue& value, const std::string& query) {
  if (value.is_string()) {
    std::string spoken = value.as_string();
    std::replace(spoken.begin(), spoken.end(), '_', ' ');
    return query.find(value.as_string()) != std::string::npos ||
           query.find(spoken) != std::string::npos;
  }
  return !value.is_number() || query.find(value.number_text()) != std::string::npos;
}

TEST(RowGeneratorTest, EveryCallIsValidAndGrounded) {
  const RowGenerator generator(quickstart_tools(), {.multi_call_share = 0.3});
  int calls = 0;
  for (std::uint64_t i = 0; i < 500; ++i) {
    const SynthRow row = generator.row(i);
    const std::vector<CallProblem> problems = validate_calls(row.answers, row.tools);
    ASSERT_TRUE(problems.empty()) << problems[0].path << ": " << problems[0].message << "\n"
                                  << row.to_jsonl();
    for (const Call& call : row.answers) {
      ++calls;
      for (const auto& [name, value] : call.arguments.members()) {
        // A decorated query may have its first letter raised.
        std::string lowered = row.query;
        lowered[0] = static_cast<char>(std::tolower(static_cast<unsigned char>(lowered[0])));
        EXPECT_TRUE(grounded(value, row.query) || grounded(value, lowered)) << row.to_jsonl();
      }
    }
  }
  EXPECT_GT(calls, 400);
}

TEST(RowGeneratorTest, ARowFollowsFromSeedAndIndexAlone) {
  const RowGenerator one(quickstart_tools(), {.seed = 7});
  const RowGenerator two(quickstart_tools(), {.seed = 7});
  const RowGenerator other(quickstart_tools(), {.seed = 8});
  two.row(3);
  EXPECT_EQ(one.row(11).to_jsonl(), two.row(11).to_jsonl());
  EXPECT_NE(one.row(11).to_jsonl(), other.row(11).to_jsonl());
}

TEST(RowGeneratorTest, SharesOfRowKindsAreAsAsked) {
  const RowGenerator generator(quickstart_tools(),
                               {.no_call_share = 0.25, .multi_call_share = 0.5});
  int none = 0;
  int several = 0;
  for (std::uint64_t i = 0; i < 2000; ++i) {
    const std::size_t calls = generator.row(i).answers.size();
    none += calls == 0 ? 1 : 0;
    several += calls > 1 ? 1 : 0;
  }
  EXPECT_NEAR(none, 500, 80);  // four standard deviations of a binomial count
  EXPECT_NEAR(several, 1000, 90);
}

TEST(RowGeneratorTest, ToolsWithoutTemplatesAreAskedForInTheirOwnWords) {
  const std::vector<Tool> tools =
      parse_tools_text(R"([{"name":"BookTable","description":"Book a table at a restaurant",
      "parameters":{"type":"object","properties":{"party_size":{"type":"integer"},"city":{"type":"string"}},
      "required":["party_size","city"]}}])");
  const RowGenerator generator(tools, {.no_call_share = 0, .multi_call_share = 0});
  for (std::uint64_t i = 0; i < 50; ++i) {
    const SynthRow row = generator.row(i);
    ASSERT_EQ(row.answers.size(), 1u);
    EXPECT_TRUE(validate_calls(row.answers, row.tools).empty()) << row.to_jsonl();
    EXPECT_NE(row.query.find("able"), std::string::npos) << row.query;
  }
}

TEST(RowGeneratorTest, RefusesWhatItCannotUse) {
  EXPECT_THROW(RowGenerator({}, {}), DataError);
  EXPECT_THROW(RowGenerator(quickstart_tools(), {.min_tools = 3, .max_tools = 2}), ConfigError);
  EXPECT_THROW(
      RowGenerator(parse_tools_text(R"([{"name":"a","parameters":{},"templates":["do {x}"]}])"),
                   {}),
      DataError);
}

TEST(SynthTextRowTest, AnswersAreCopiedFromTheSeedText) {
  for (std::uint64_t i = 0; i < 300; ++i) {
    const SynthTextRow row = synth_text_row({}, i);
    ASSERT_FALSE(row.answer.empty());
    if (row.query != "list all") {
      EXPECT_NE(row.seed_text.find(row.answer), std::string::npos) << row.to_jsonl();
    }
  }
}

}  // namespace
}  // namespace needle
