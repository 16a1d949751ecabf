// needle-run as its user meets it, with the golden folder's trained model in a weights file.
#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/calls/tool.h"
#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/runtime/loaded_model.h"

#include "tests/runtime/golden_model.h"
#include "tests/support/golden.h"
#include "tests/support/program.h"

namespace needle::runtime {
namespace {

using test::golden;
using test::ProgramResult;
using ::testing::EndsWith;
using ::testing::HasSubstr;

// A model of checkpoint/ that fits the golden tokenizer and has cases in generate.json.
struct GoldenCase {
  std::string model;
  std::string query;
  std::string tools;
  std::string text;
  std::int64_t max_gen_len = 0;
};

class NeedleRunIntegration : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<test::TemporaryFolder>();
    const Json cases = read_json_file(golden("generate/generate.json")).at("cases");
    for (const Json& item : cases) {
      const std::string model = item.at("model");
      if (model.find(',') == std::string::npos && item.at("ended_by_eos").get<bool>() &&
          !item.at("constrained").get<bool>() && item.at("normalize").get<bool>() &&
          item.at("max_enc_len") == PromptConfig{}.max_enc_len &&
          item.at("text").get<std::string>().starts_with("[{")) {
        cases_.push_back({.model = model,
                          .query = item.at("query"),
                          .tools = item.at("tools"),
                          .text = item.at("text"),
                          .max_gen_len = item.at("max_gen_len")});
      }
    }
    if (cases_.empty()) {
      return;
    }
    const auto parameters = test::pickled_parameters(golden("checkpoint/" + cases_[0].model));
    std::erase_if(cases_, [](const GoldenCase& c) { return c.model != cases_[0].model; });
    std::filesystem::path tokenizer;
    for (const auto& entry : std::filesystem::directory_iterator(golden("tokenizer"))) {
      if (entry.path().extension() == ".model") {
        tokenizer = entry.path();
      }
    }
    weights_ = (*folder_ / "model.needle").string();
    test::write_weights(weights_, parameters.config,
                        test::module_parameters(parameters.config, parameters.arrays),
                        WeightEncoding::kF32, read_file(tokenizer));
    tools_ = (*folder_ / "tools.json").string();
    write_file_atomic(tools_, cases_[0].tools);
  }
  static void TearDownTestSuite() { folder_.reset(); }
  void SetUp() override {
    if (cases_.empty()) {
      GTEST_SKIP() << "the golden folder has no generation that ends in a call";
    }
  }

  static ProgramResult run(std::vector<std::string> arguments, std::string_view input = "") {
    return test::run_program(test::built_program("needle-run"), arguments, input);
  }

  static std::unique_ptr<test::TemporaryFolder> folder_;
  static std::vector<GoldenCase> cases_;
  static std::string weights_;
  static std::string tools_;
};
std::unique_ptr<test::TemporaryFolder> NeedleRunIntegration::folder_;
std::vector<GoldenCase> NeedleRunIntegration::cases_;
std::string NeedleRunIntegration::weights_;
std::string NeedleRunIntegration::tools_;

TEST_F(NeedleRunIntegration, AnswersAsTheReference) {
  for (std::size_t i = 0; i < std::min<std::size_t>(cases_.size(), 5); ++i) {
    const auto result = run({"--model", weights_, "--tools", cases_[i].tools, "--query",
                             cases_[i].query, "--constrain", "none"});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    EXPECT_EQ(result.out, cases_[i].text + "\n");
  }
}

TEST_F(NeedleRunIntegration, QueriesFromStdinGiveOneJsonObjectALine) {
  const auto result = run({"--model", weights_, "--tools", tools_, "--json"},
                          cases_[0].query + "\n\n  \nhello\r\n");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  std::istringstream lines(result.out);
  std::string line;
  ASSERT_TRUE(std::getline(lines, line));
  const Json first = parse_json(line, "line 1");
  EXPECT_EQ(first.at("query"), cases_[0].query);
  EXPECT_EQ(first.at("text"), cases_[0].text);
  EXPECT_EQ(first.at("calls"), parse_json(cases_[0].text, "text"));
  EXPECT_EQ(first.at("stop"), "eos");
  EXPECT_GT(first.at("prompt_tokens"), 0);
  ASSERT_TRUE(std::getline(lines, line));
  EXPECT_EQ(parse_json(line, "line 2").at("query"), "hello");
  EXPECT_FALSE(std::getline(lines, line));
}

TEST_F(NeedleRunIntegration, StreamedTextIsTheAnswer) {
  const auto result =
      run({"--model", weights_, "--tools", tools_, "--query", cases_[0].query, "--stream"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  // Names that needed restoring are printed once more, as the caller knows them.
  EXPECT_THAT(result.out, EndsWith(cases_[0].text + "\n"));
}

TEST_F(NeedleRunIntegration, MaxGenLenEndsTheAnswer) {
  const auto result = run({"--model", weights_, "--tools", tools_, "--query", cases_[0].query,
                           "--json", "--max-gen-len", "3", "--constrain", "none"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json line = parse_json(result.out, "line");
  EXPECT_EQ(line.at("stop"), "max_tokens");
  EXPECT_EQ(line.at("tokens"), 2);
  EXPECT_TRUE(line.at("calls").is_null());
}

TEST_F(NeedleRunIntegration, TheGrammarAnswersWholeWithinTheBudgetAndRefusesATooSmallOne) {
  const auto call = [&](const std::string& most) {
    return run({"--model", weights_, "--tools", tools_, "--query", cases_[0].query, "--json",
                "--tool-choice", "required", "--max-gen-len", most});
  };
  const auto small = call("3");
  EXPECT_EQ(small.exit_code, 2);
  EXPECT_THAT(small.err, HasSubstr("max_gen_len 3 is too small"));
  const auto fine = call("200");
  ASSERT_EQ(fine.exit_code, 0) << fine.err;
  const Json line = parse_json(fine.out, "line");
  EXPECT_EQ(line.at("stop"), "eos");
  EXPECT_GE(line.at("calls").size(), 1);
}

TEST_F(NeedleRunIntegration, RetrieveRanksTheToolsOfTheReference) {
  const Json expected = read_json_file(golden("retrieval/retrieval.json"));
  if (expected.at("model") != cases_[0].model) {
    GTEST_SKIP() << "retrieval.json is about another model";
  }
  std::string tools;
  for (const Json& tool : expected.at("tools")) {
    tools += (tools.empty() ? "[" : ",") + tool.get<std::string>();
  }
  tools += "]";
  if (std::ranges::any_of(parse_tools_text(tools), [](const Tool& t) { return t.name.empty(); })) {
    GTEST_SKIP() << "one of the texts is not a tool";
  }
  const Json& item = expected.at("queries").at(0);
  const auto result =
      run({"retrieve", "--model", weights_, "--tools", tools, "--query",
           item.at("query").get<std::string>(), "--top-k", "2", "--json", "--numerics", "float"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const Json line = parse_json(result.out, "line");
  ASSERT_EQ(line.at("tools").size(), 2u);
  for (std::size_t i = 0; i < 2; ++i) {
    const Json& ranked = item.at("ranked").at(i);
    EXPECT_EQ(line.at("tools").at(i).at("index"), ranked.at(0));
    EXPECT_NEAR(line.at("tools").at(i).at("score").get<double>(), ranked.at(1).get<double>(), 2e-5);
  }
}

TEST_F(NeedleRunIntegration, BenchReports) {
  const std::filesystem::path shape = *folder_ / "shape.json";
  std::ofstream(shape) << R"({"vocab_size": 300, "d_model": 64, "num_heads": 4, "num_kv_heads": 2,
                             "num_encoder_layers": 2, "num_decoder_layers": 2})";
  const std::vector<std::vector<std::string>> subjects = {{"--model", weights_},
                                                          {"--random-weights", shape.string()}};
  for (std::vector<std::string> arguments : subjects) {
    arguments.insert(arguments.begin(), "bench");
    arguments.insert(arguments.end(), {"--repeats", "1", "--json"});
    const auto result = run(arguments);
    ASSERT_EQ(result.exit_code, 0) << result.err;
    std::map<std::string, double> values;
    std::istringstream lines(result.out);
    for (std::string line; std::getline(lines, line);) {
      const Json metric = parse_json(line, "bench");
      EXPECT_EQ(metric.at("threads"), 1);
      values[metric.at("metric")] = metric.at("value");
    }
    for (const char* name :
         {"prefill_tok_s_64", "prefill_tok_s_256", "prefill_tok_s_1024", "decode_tok_s",
          "ttft_ms_256", "call_ms_200_30", "load_ms", "file_mb", "anon_mb"}) {
      EXPECT_GT(values[name], 0) << name;
    }
  }
  EXPECT_EQ(run({"bench", "--random-weights", "missing.json"}).exit_code, 1);

  // The same weights in a file, which answers as any other; and their logits for other programs.
  const std::string kept = (*folder_ / "kept.needle").string();
  const std::string logits = (*folder_ / "logits").string();
  ASSERT_EQ(run({"bench", "--random-weights", shape.string(), "--keep", kept, "--logits", logits})
                .exit_code,
            0);
  EXPECT_EQ(std::filesystem::file_size(logits), 16u * 300u * 4u);
  const auto from_file = run({"-m", kept, "-q", "x", "--max-gen-len", "20", "--constrain", "none"});
  const auto at_random = run({"--random-weights", shape.string(), "-q", "x", "--max-gen-len", "20",
                              "--constrain", "none"});
  EXPECT_EQ(from_file.exit_code, 0) << from_file.err;
  EXPECT_EQ(at_random.out, from_file.out) << at_random.err;
  EXPECT_EQ(run({"bench", "-m", kept, "--keep", kept}).exit_code, 2);
}

TEST_F(NeedleRunIntegration, ChecksumsCanBeSkipped) {
  const std::string damaged = (*folder_ / "damaged.needle").string();
  std::string bytes = read_file(weights_);
  bytes[bytes.size() - 1] = static_cast<char>(bytes[bytes.size() - 1] ^ 1);  // log_temp, unused
  write_file_atomic(damaged, bytes);
  const auto refused = run({"-m", damaged, "-q", "x"});
  EXPECT_EQ(refused.exit_code, 1);
  EXPECT_THAT(refused.err, HasSubstr("is damaged"));
  EXPECT_EQ(run({"-m", damaged, "-q", "x", "--skip-checksums"}).exit_code, 0);
}

TEST_F(NeedleRunIntegration, LoadedModelIsTheApi) {
  const LoadedModel model = LoadedModel::load(weights_);
  std::string streamed;
  const CallResult result =
      model.generate(cases_[0].query, cases_[0].tools, [&streamed](std::string_view text) {
        streamed += text;
        return true;
      });
  const CallResult free = model.call(
      {.query = cases_[0].query, .tools_json = cases_[0].tools, .constrain = Constrain::kNone});
  EXPECT_EQ(free.text, cases_[0].text);
  EXPECT_EQ(streamed, result.raw_text);
  EXPECT_EQ(model.tokenizer().vocab_size(), model.engine().vocab_size());
}

TEST_F(NeedleRunIntegration, ExampleProgramRuns) {
  const auto result = test::run_program(test::built_program("example-generate-runtime"),
                                        {weights_, "wake me at 6"});
  EXPECT_EQ(result.exit_code, 0) << result.err;
  EXPECT_EQ(std::ranges::count(result.out, '\n'), 3) << result.out;
  EXPECT_THAT(result.out, HasSubstr(" pieces"));
  const auto typed =
      test::run_program(test::built_program("example-typed-tools"), {weights_, "wake me at 6"});
  EXPECT_EQ(typed.exit_code, 0) << typed.err;
  std::string queries;
  for (int i = 0; i < 11; ++i) {
    queries += format("wake me at {}\n", i);
  }
  const auto batch =
      test::run_program(test::built_program("example-generate-batch"), {weights_}, queries);
  EXPECT_EQ(batch.exit_code, 0) << batch.err;
  EXPECT_EQ(std::ranges::count(batch.out, '\n'), 11) << batch.out;
}

TEST_F(NeedleRunIntegration, WrongUseIsExplained) {
  EXPECT_EQ(run({"--help"}).exit_code, 0);
  EXPECT_THAT(run({"--help"}).out, HasSubstr("needle-run --model model.needle"));
  EXPECT_EQ(run({"--no-such-flag"}).exit_code, 2);
  EXPECT_EQ(run({"--query", "x"}).exit_code, 2);
  EXPECT_EQ(run({"-m", weights_, "-q", "x", "--constrain", "everything"}).exit_code, 2);
  EXPECT_EQ(run({"-m", weights_, "-q", "x", "--max-gen-len", "0"}).exit_code, 2);
  EXPECT_EQ(run({"retrieve", "-m", weights_, "-q", "x"}).exit_code, 2);

  const auto absent = run({"-m", (*folder_ / "absent.needle").string(), "-q", "x"});
  EXPECT_EQ(absent.exit_code, 1);
  EXPECT_THAT(absent.err, HasSubstr("absent.needle"));
  const auto not_weights = run({"-m", tools_, "-q", "x"});
  EXPECT_EQ(not_weights.exit_code, 1);
  EXPECT_THAT(not_weights.err, HasSubstr("not a weights file"));
  const auto bad_tools = run({"-m", weights_, "-q", "x", "-t", "[{\"name\": 5}]"});
  EXPECT_EQ(bad_tools.exit_code, 1);
  EXPECT_THAT(bad_tools.err, HasSubstr("--tools"));
  EXPECT_EQ(run({"-m", weights_, "-q", "x", "-t", "/nonexistent.json"}).exit_code, 1);
}

TEST_F(NeedleRunIntegration, FileWithoutTokenizerIsRefused) {
  const auto parameters = test::pickled_parameters(golden("checkpoint/" + cases_[0].model));
  const std::string bare = (*folder_ / "bare.needle").string();
  test::write_weights(bare, parameters.config,
                      test::module_parameters(parameters.config, parameters.arrays),
                      WeightEncoding::kInt4);
  const auto result = run({"-m", bare, "-q", "x"});
  EXPECT_EQ(result.exit_code, 1);
  EXPECT_THAT(result.err, HasSubstr("carries no tokenizer"));
}

// All tools, chosen, make the same prompt as all tools without a choice.
TEST_F(NeedleRunIntegration, ShowsTheToolsThatFitBest) {
  const std::string index = (*folder_ / "tools.index").string();
  const auto prompt_tokens = [&](std::vector<std::string> extra) {
    std::vector<std::string> arguments = {"--model", weights_,        "--tools", tools_,
                                          "--query", cases_[0].query, "--json"};
    arguments.insert(arguments.end(), extra.begin(), extra.end());
    const ProgramResult result = run(arguments);
    EXPECT_EQ(result.exit_code, 0) << result.err;
    return Json::parse(result.out).at("prompt_tokens").get<int>();
  };
  const int all = prompt_tokens({});
  EXPECT_EQ(prompt_tokens({"--top-k", "1000", "--index", index}), all);
  EXPECT_TRUE(std::filesystem::exists(index));
  EXPECT_EQ(prompt_tokens({"--top-k", "1000", "--index", index}), all);
  if (parse_tools_text(cases_[0].tools).size() > 1) {
    EXPECT_LT(prompt_tokens({"--top-k", "1", "--index", index}), all);
  }
  EXPECT_EQ(run({"--model", weights_, "--tools", tools_, "--query", "x", "--top-k", "0"}).exit_code,
            2);
}

}  // namespace
}  // namespace needle::runtime
