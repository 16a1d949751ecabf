// needle-eval as a user runs it.
#include <cstdio>
#include <filesystem>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/wait.h>

#include "needle/core/file.h"
#include "needle/core/format.h"
#include "needle/core/json.h"
#include "needle/eval/compare.h"
#include "needle/runtime/loaded_model.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;

struct Outcome {
  int exit_code = -1;
  std::string out;
  std::string err;
};

Outcome run(std::string_view program, const std::vector<std::string>& arguments) {
  const test::TemporaryFolder folder;
  std::string command = format("'{}'", program);
  for (const std::string& argument : arguments) {
    command += format(" '{}'", argument);
  }
  const std::string out = (folder / "out").string();
  const std::string err = (folder / "err").string();
  const int status = std::system(format("{} >'{}' 2>'{}'", command, out, err).c_str());
  return {.exit_code = WIFEXITED(status) ? WEXITSTATUS(status) : -1,
          .out = read_file(out),
          .err = read_file(err)};
}

Outcome needle_eval(const std::vector<std::string>& arguments) {
  return run(NEEDLE_EVAL_PROGRAM, arguments);
}

std::string examples() { return test::golden("generate/train_examples.jsonl").string(); }

TEST(NeedleEvalIntegrationTest, HelpTeaches) {
  const Outcome help = needle_eval({"--help"});
  EXPECT_EQ(help.exit_code, 0);
  EXPECT_THAT(help.out, HasSubstr("needle-eval calls --model model.needle"));
  for (const std::string command : {"calls", "retrieval", "compare"}) {
    const Outcome done = needle_eval({command, "--help"});
    EXPECT_EQ(done.exit_code, 0) << command;
    EXPECT_THAT(done.out, HasSubstr("needle-eval " + command)) << "an example";
  }
}

TEST(NeedleEvalIntegrationTest, WrongUsageIsExitCode2AndFailureIs1) {
  EXPECT_EQ(needle_eval({}).exit_code, 2);
  EXPECT_EQ(needle_eval({"unknown"}).exit_code, 2);
  EXPECT_EQ(needle_eval({"calls", "--data", examples()}).exit_code, 2);
  EXPECT_EQ(
      needle_eval({"calls", "--model", "x.needle", "--data", examples(), "--constrain", "all"})
          .exit_code,
      2);
  const Outcome missing = needle_eval({"calls", "--model", "absent.needle", "--data", examples()});
  EXPECT_EQ(missing.exit_code, 1);
  EXPECT_THAT(missing.err, HasSubstr("absent.needle"));
  EXPECT_EQ(missing.out, "");
  const Outcome no_data = needle_eval({"compare", "a.jsonl", "b.needle"});
  EXPECT_EQ(no_data.exit_code, 2);
  EXPECT_THAT(no_data.err, HasSubstr("--data"));
  EXPECT_EQ(needle_eval({"calls", "--model", "x.needle", "--data", examples(), "--kernels", "int4"})
                .exit_code,
            2)
      << "a .needle file is quantised already";
}

TEST(NeedleEvalIntegrationTest, BrokenDataNamesTheLine) {
  const test::TemporaryFolder folder;
  write_file_atomic(folder / "bad.jsonl",
                    "{\"query\":\"q\",\"tools\":\"[]\",\"answers\":\"[]\"}\n{\n");
  const Outcome done =
      needle_eval({"calls", "--model", "x.needle", "--data", (folder / "bad.jsonl").string()});
  EXPECT_EQ(done.exit_code, 1);
  EXPECT_THAT(done.err, HasSubstr("bad.jsonl:2"));
  write_file_atomic(folder / "empty.jsonl", "\n");
  EXPECT_EQ(
      needle_eval({"calls", "--model", "x.needle", "--data", (folder / "empty.jsonl").string()})
          .exit_code,
      1);
}

TEST(NeedleEvalIntegrationTest, ComparesSavedAnswers) {
  const test::TemporaryFolder folder;
  std::vector<SavedPrediction> saved(
      4, {.query = "q", .reference = "[]", .text = "[]", .ids = {4}, .exact = true});
  write_predictions(folder / "a.jsonl", saved);
  saved[0] = {.query = "q", .reference = "[]", .text = "x", .ids = {5}, .exact = false};
  write_predictions(folder / "b.jsonl", saved);
  const std::string a = (folder / "a.jsonl").string();
  const std::string b = (folder / "b.jsonl").string();
  const Outcome done = needle_eval({"compare", a, b, "--json"});
  EXPECT_EQ(done.exit_code, 0) << done.err;
  const Json json = parse_json(done.out, "output");
  EXPECT_EQ(json.at("same_tokens").get<int>(), 3);
  EXPECT_EQ(json.at("only_a").get<int>(), 1);
  EXPECT_EQ(needle_eval({"compare", a, b, "--min-agreement", "75"}).exit_code, 0);
  const Outcome strict = needle_eval({"compare", a, b, "--min-agreement", "76"});
  EXPECT_EQ(strict.exit_code, 1);
  EXPECT_THAT(strict.err, HasSubstr("75.00 %"));
}

#ifdef NEEDLE_EXPORT_PROGRAM  // a build with LibTorch

std::vector<std::string> with_trained_model(std::string command, std::vector<std::string> more) {
  std::vector<std::string> arguments = {std::move(command),
                                        "--device",
                                        "cpu",
                                        "--tokenizer",
                                        test::golden("tokenizer/tiny.model").string(),
                                        "--data",
                                        examples()};
  arguments.insert(arguments.end(), more.begin(), more.end());
  return arguments;
}

std::string trained() { return test::golden("checkpoint/trained.pkl").string(); }

TEST(NeedleEvalIntegrationTest, ATrainedCheckpointKnowsItsExamples) {
  const test::TemporaryFolder folder;
  const std::string report = (folder / "report.json").string();
  const std::string saved = (folder / "saved.jsonl").string();
  const Outcome done = needle_eval(with_trained_model(
      "calls", {"--model", trained(), "--output", report, "--predictions", saved}));
  EXPECT_EQ(done.exit_code, 0) << done.err;
  EXPECT_THAT(done.out, HasSubstr("exact match"));
  EXPECT_EQ(done.err, "") << "no bar where nobody watches";
  const Json strict = read_json_file(report).at("models").at(0).at("report").at("strict");
  EXPECT_GE(strict.at("exact_match").get<double>(), 0.9);
  EXPECT_EQ(strict.at("examples").get<std::size_t>(), read_predictions(saved).size());

  // The same answers however many at a time, and two columns for two models.
  const Outcome compared =
      needle_eval({"compare", saved, trained(), "--threads", "1", "--device", "cpu", "--tokenizer",
                   test::golden("tokenizer/tiny.model").string(), "--data", examples(),
                   "--min-agreement", "100"});
  EXPECT_EQ(compared.exit_code, 0) << compared.err;
  const Outcome two = needle_eval(with_trained_model(
      "calls", {"--model", trained(), "--model", test::golden("checkpoint/random.pkl").string(),
                "--limit", "3", "--max-gen-len", "20", "--markdown"}));
  EXPECT_EQ(two.exit_code, 0) << two.err;
  EXPECT_THAT(two.out, HasSubstr("trained.pkl | random.pkl |"));
}

TEST(NeedleEvalIntegrationTest, AWeightsFileAnswersAsItsCheckpoint) {
  const test::TemporaryFolder folder;
  const std::string weights = (folder / "trained.needle").string();
  const std::string tokenizer = test::golden("tokenizer/tiny.model").string();
  const Outcome exported =
      run(NEEDLE_EXPORT_PROGRAM, {"export", trained(), "--tokenizer", tokenizer, "-o", weights,
                                  "--kernels", "int4", "--embedding", "int8"});
  ASSERT_EQ(exported.exit_code, 0) << exported.err;
  const Outcome same = needle_eval({"compare", trained(), weights, "--tokenizer", tokenizer,
                                    "--device", "cpu", "--data", examples(), "--kernels", "int4",
                                    "--embedding", "int8", "--min-agreement", "99"});
  EXPECT_EQ(same.exit_code, 0) << same.out << same.err;
  const Outcome alone = needle_eval({"calls", "--model", weights, "--data", examples(), "--json"});
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  const Json report = parse_json(alone.out, "output").at("models").at(0).at("report");
  EXPECT_GE(report.at("strict").at("exact_match").get<double>(), 0.9);
  EXPECT_GT(report.at("speed").at("tokens_per_second").get<double>(), 0.0);

  const std::string fitted = (folder / "calibrated.needle").string();
  const Outcome calibrated =
      needle_eval({"calibrate", "--model", weights, "--data", examples(), "-o", fitted, "--json"});
  ASSERT_EQ(calibrated.exit_code, 0) << calibrated.err;
  const Json fit = parse_json(calibrated.out, "output");
  EXPECT_GT(fit.at("calibration").at("call").at("examples").get<int>(), 0);
  EXPECT_EQ(fit.at("answers").at("examples"), report.at("strict").at("examples"));
  const Outcome same_answers =
      needle_eval({"compare", weights, fitted, "--data", examples(), "--min-agreement", "100"});
  EXPECT_EQ(same_answers.exit_code, 0) << "only the meaning of confidence is new";
  const auto loaded = runtime::LoadedModel::load(fitted);
  const CallResult result = loaded.call({.query = "wake me at 7",
                                         .tools_json = R"([{"name":"set_alarm","parameters":{}}])",
                                         .detail = StepDetail::kConfidence});
  ASSERT_TRUE(result.confidence && result.confidence->calibrated);
  EXPECT_GT(*result.confidence->calibrated, 0.0);
  EXPECT_LT(*result.confidence->calibrated, 1.0);
}

TEST(NeedleEvalIntegrationTest, PerplexityAndRetrievalOfACheckpoint) {
  const Outcome perplexity =
      needle_eval(with_trained_model("perplexity", {"--model", trained(), "--json"}));
  EXPECT_EQ(perplexity.exit_code, 0) << perplexity.err;
  const Json figures = parse_json(perplexity.out, "output");
  EXPECT_GT(figures.at("perplexity").get<double>(), 1.0);
  EXPECT_LT(figures.at("perplexity").get<double>(), 2.0);
  EXPECT_NE(figures.at("perplexity").get<double>(), figures.at("perplexity_int4").get<double>());
  const Outcome retrieval =
      needle_eval(with_trained_model("retrieval", {"--model", trained(), "--json"}));
  EXPECT_EQ(retrieval.exit_code, 0) << retrieval.err;
  EXPECT_GE(parse_json(retrieval.out, "output").at("recall").at("1").get<double>(), 0.9);
}

TEST(NeedleEvalIntegrationTest, ATokenizerThatDoesNotFitIsRefused) {
  const Outcome done = needle_eval({"calls", "--model", trained(), "--data", examples()});
  EXPECT_EQ(done.exit_code, 1);
  EXPECT_THAT(done.err, HasSubstr("tokenizer"));
}

#else

TEST(NeedleEvalIntegrationTest, WithoutLibTorchACheckpointIsRefusedWithAdvice) {
  const Outcome done = needle_eval({"calls", "--model", "runs/x", "--data", examples()});
  EXPECT_EQ(done.exit_code, 2);
  EXPECT_THAT(done.err, HasSubstr("needle-export"));
}

#endif

}  // namespace
}  // namespace needle
