// needle-export as its user meets it, from a published pickle to an answer of needle-run.
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/core/pickle.h"
#include "needle/model/checkpoint.h"
#include "needle/quant/released_params.h"
#include "needle/train/saved_model.h"

#include "tests/support/golden.h"
#include "tests/support/program.h"

namespace needle {
namespace {

using test::golden;
using test::ProgramResult;
using ::testing::HasSubstr;

ProgramResult run(std::string_view program, const std::vector<std::string>& arguments) {
  return test::run_program(test::built_program(program), arguments);
}

std::filesystem::path golden_tokenizer() {
  for (const auto& entry : std::filesystem::directory_iterator(golden("tokenizer"))) {
    if (entry.path().extension() == ".model") {
      return entry.path();
    }
  }
  return {};
}

class NeedleExportIntegration : public ::testing::Test {
 protected:
  void SetUp() override {
    const Json cases = read_json_file(golden("generate/generate.json")).at("cases");
    const auto found = std::ranges::find_if(cases, [](const Json& item) {
      return item.at("model").get<std::string>().ends_with(", int4 kernels") &&
             item.at("ended_by_eos").get<bool>() && item.at("normalize").get<bool>();
    });
    if (found == cases.end()) {
      GTEST_SKIP() << "the golden folder has no generation with INT4 kernels";
    }
    case_ = *found;
    const std::string model = case_.at("model");
    pickle_ = golden("checkpoint/" + model.substr(0, model.find(',')));
  }
  std::string at(std::string_view name) const { return (folder_ / name).string(); }

  test::TemporaryFolder folder_;
  Json case_;
  std::filesystem::path pickle_;
};

TEST_F(NeedleExportIntegration, PickleToCheckpointToWeightsFileToAnswer) {
  const auto imported = run("needle-export", {"import", pickle_.string(), "--tokenizer",
                                              golden_tokenizer().string(), "-o", at("base")});
  ASSERT_EQ(imported.exit_code, 0) << imported.err;
  const auto exported =
      run("needle-export",
          {"export", at("base"), "-o", at("model.needle"), "--verify-data",
           golden("generate/train_examples.jsonl").string(), "--verify-rows", "6", "--json"});
  ASSERT_EQ(exported.exit_code, 0) << exported.err;
  const Json report = parse_json(exported.out, "report");
  EXPECT_EQ(report.at("prompts"), 6);
  EXPECT_EQ(report.at("different_tokens"), 0);
  EXPECT_LE(report.at("logit_difference"), report.at("tolerance"));

  const auto answer = run("needle-run", {"--model", at("model.needle"), "--tools",
                                         case_.at("tools"), "--query", case_.at("query")});
  EXPECT_EQ(answer.exit_code, 0) << answer.err;
  EXPECT_FALSE(answer.out.empty());

  const auto example = run("example-generate-libtorch", {at("base"), case_.at("query")});
  EXPECT_EQ(example.exit_code, 0) << example.err;
  EXPECT_EQ(std::ranges::count(example.out, '\n'), 3) << example.out;

  // Back to the published format: the same arrays.
  const auto pickled = run("needle-export", {"pickle", at("base"), "-o", at("again.pkl")});
  ASSERT_EQ(pickled.exit_code, 0) << pickled.err;
  const auto before = read_released_checkpoint(pickle_);
  const auto after = read_released_checkpoint(folder_ / "again.pkl");
  EXPECT_EQ(after.config, before.config);
  ASSERT_EQ(after.params.size(), before.params.size());
  for (const auto& [name, array] : before.params) {
    EXPECT_EQ(after.params.at(name).bytes, array.bytes) << name;
  }
}

TEST_F(NeedleExportIntegration, NeedleRsFilesComeBackAsTheSameModel) {
  ASSERT_EQ(run("needle-export", {"import", pickle_.string(), "--tokenizer",
                                  golden_tokenizer().string(), "-o", at("base")})
                .exit_code,
            0);
  const auto out = run("needle-export",
                       {"export", at("base"), "--format", "needle-rs", "-o", at("rs"), "--json"});
  ASSERT_EQ(out.exit_code, 0) << out.err;
  EXPECT_EQ(parse_json(out.out, "line").at("format"), "needle-rs");
  const auto back = run("needle-export", {"import", at("rs"), "-o", at("again")});
  ASSERT_EQ(back.exit_code, 0) << back.err;
  // Its kernels were rounded by the rule already, and its texts are the same tokens.
  const SavedModel before = load_saved_model(at("base"));
  const SavedModel after = load_saved_model(at("again"));
  ModelConfig config = after.model->config();
  config.max_seq_len = before.model->config().max_seq_len;  // the format has no place for it
  EXPECT_EQ(config, before.model->config());
  const std::string text = R"([{"name":"get_weather","arguments":{"city":"Zürich"}}] <tools>)";
  EXPECT_EQ(after.tokenizer.encode(text), before.tokenizer.encode(text));
  EXPECT_EQ(after.prompt.max_dec_len, before.prompt.max_dec_len);
  const NamedTensors parameters = named_parameters(after.model);
  for (const auto& [name, value] : named_parameters(before.model)) {
    if (name == "log_temp") {  // nor for the temperature of the retrieval loss
      continue;
    }
    const double largest = value.abs().max().item<double>();
    const double difference = (parameters.at(name) - value).abs().max().item<double>();
    EXPECT_LE(difference, largest / 14 + 1e-6) << name;  // half a step of the largest group
  }
  const auto beside = run("needle-export", {"import", at("rs/needle.safetensors"), "--tokenizer",
                                            at("rs/vocab.txt"), "-o", at("third")});
  EXPECT_EQ(beside.exit_code, 0) << beside.err;
  const auto damaged = run("needle-export", {"import", at("rs/needle.safetensors"), "--tokenizer",
                                             pickle_.string(), "-o", at("fourth")});
  EXPECT_EQ(damaged.exit_code, 1);
}

// A C program with the model inside, through the shared library.
TEST_F(NeedleExportIntegration, AnEmbeddedModelAnswers) {
  ASSERT_EQ(run("needle-export", {"import", pickle_.string(), "--tokenizer",
                                  golden_tokenizer().string(), "-o", at("base")})
                .exit_code,
            0);
  ASSERT_EQ(
      run("needle-export", {"export", at("base"), "-o", at("model.needle"), "--verify-tokens", "2"})
          .exit_code,
      0);
  const auto embedded = run("needle-export", {"embed", at("model.needle"), "-o", at("model.c")});
  ASSERT_EQ(embedded.exit_code, 0) << embedded.err;
  write_file_atomic(folder_ / "main.c", R"(#include <stdio.h>
#include "model.h"
#include "needle/capi/needle.h"
int main(void) {
  needle_model* loaded = NULL;
  needle_session* session = NULL;
  needle_result result;
  if (needle_model_load_memory(model, model_size, NULL, &loaded) != NEEDLE_OK ||
      needle_session_create(loaded, "[]", 2, &session) != NEEDLE_OK ||
      needle_generate(session, "hello", 5, NULL, NULL, NULL, &result) != NEEDLE_OK) {
    fputs(needle_last_error(), stderr);
    return 1;
  }
  puts(result.text);
  needle_session_free(session);
  needle_model_free(loaded);
  return 0;
}
)");
  const std::filesystem::path library =
      test::built_program("needle-run").parent_path().parent_path() / "needle/capi";
  const std::string command = "cd " + folder_.path().string() + " && cc -I" +
                              test::source_dir().string() + " -o program main.c model.c -L" +
                              library.string() + " -lneedle -Wl,-rpath," + library.string() +
                              " && ./program > answer";
  ASSERT_EQ(std::system(command.c_str()), 0) << command;
  EXPECT_EQ(read_file(folder_ / "answer"), "[]\n");
  EXPECT_EQ(run("needle-export", {"embed", at("model.needle"), "-o", at("model.txt")}).exit_code,
            2);
  EXPECT_EQ(run("needle-export", {"embed", at("base"), "-o", at("model.c")}).exit_code, 1);
}

TEST_F(NeedleExportIntegration, InspectKnowsEveryKindOfFile) {
  ASSERT_EQ(run("needle-export", {"import", pickle_.string(), "--tokenizer",
                                  golden_tokenizer().string(), "-o", at("base")})
                .exit_code,
            0);
  ASSERT_EQ(
      run("needle-export", {"export", at("base"), "-o", at("model.needle"), "--verify-tokens", "2"})
          .exit_code,
      0);
  const std::vector<std::pair<std::string, std::string>> kinds{
      {at("base"), "checkpoint"},
      {at("base/model.safetensors"), "safetensors"},
      {at("base/tokenizer.model"), "tokenizer"},
      {at("model.needle"), "weights file"},
      {pickle_.string(), "published checkpoint"}};
  std::map<std::string, Json> found;
  for (const auto& [path, kind] : kinds) {
    const auto json = run("needle-export", {"inspect", path, "--json"});
    ASSERT_EQ(json.exit_code, 0) << path << json.err;
    const Json inspection = parse_json(json.out, path);
    EXPECT_EQ(inspection.at("kind"), kind) << path;
    found[kind] = inspection;
  }
  const Json& weights = found.at("weights file");
  const Json& checkpoint = found.at("checkpoint");
  EXPECT_EQ(weights.at("config").at("model"), checkpoint.at("config").at("model"));
  EXPECT_EQ(weights.at("tensors").size(), checkpoint.at("tensors").size() + 3);
  const auto text = run("needle-export", {"inspect", at("model.needle")});
  EXPECT_THAT(text.out, HasSubstr("decoder.layers.0.cross_attn.attention.v_proj.weight"));
}

TEST_F(NeedleExportIntegration, WrongUseIsExplained) {
  EXPECT_THAT(run("needle-export", {"--help"}).out, HasSubstr("needle-export inspect"));
  EXPECT_EQ(run("needle-export", {}).exit_code, 2);
  EXPECT_EQ(run("needle-export", {"export", at("absent"), "-o", at("x.needle")}).exit_code, 1);
  EXPECT_EQ(
      run("needle-export", {"export", pickle_.string(), "--tokenizer", golden_tokenizer().string(),
                            "-o", at("x.needle"), "--kernels", "int3"})
          .exit_code,
      2);
  write_file_atomic(folder_ / "text.txt", "just a text that nobody knows");
  const auto unknown = run("needle-export", {"inspect", at("text.txt")});
  EXPECT_EQ(unknown.exit_code, 1);
  EXPECT_THAT(unknown.err, HasSubstr("not a weights file"));
  const auto strict =
      run("needle-export", {"export", pickle_.string(), "--tokenizer", golden_tokenizer().string(),
                            "-o", at("x.needle"), "--tolerance", "0"});
  EXPECT_EQ(strict.exit_code, 1);
  EXPECT_THAT(strict.err, HasSubstr("does not reproduce LibTorch"));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.needle"));
}

}  // namespace
}  // namespace needle
