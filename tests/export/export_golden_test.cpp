// The golden folder's models exported to INT4: the runtime must generate what LibTorch generates
// from the same deployed weights, on the prompts of generate.json.
#include <algorithm>
#include <filesystem>
#include <map>

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/decode/generate.h"
#include "needle/export/export_weights.h"
#include "needle/model/model_engine.h"
#include "needle/model/released_checkpoint.h"
#include "needle/quant/weights_file.h"
#include "needle/runtime/engine.h"
#include "needle/text/tokenizer.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using test::golden;

std::map<std::string, std::vector<std::vector<TokenId>>> golden_prompts() {
  std::map<std::string, std::vector<std::vector<TokenId>>> prompts;  // by file of checkpoint/
  const Json cases = read_json_file(golden("generate/generate.json")).at("cases");
  for (const Json& item : cases) {
    const std::string model = item.at("model");
    auto& known = prompts[model.substr(0, model.find(','))];
    auto ids = item.at("encoder_ids").get<std::vector<TokenId>>();
    // Many cases share a prompt; a dozen of each model keep the test short.
    if (known.size() < 12 && std::ranges::find(known, ids) == known.end()) {
      known.push_back(std::move(ids));
    }
  }
  return prompts;
}

TEST(ExportGolden, RuntimeGeneratesWhatTheDeployedModelGenerates) {
  for (const auto& [name, prompts] : golden_prompts()) {
    const Needle model = load_released_checkpoint(golden("checkpoint/" + name));
    std::filesystem::path tokenizer_path;
    for (const auto& entry : std::filesystem::directory_iterator(golden("tokenizer"))) {
      if (entry.path().extension() == ".model") {
        tokenizer_path = entry.path();
      }
    }
    const Tokenizer tokenizer = Tokenizer::load(tokenizer_path);
    if (tokenizer.vocab_size() != model->config().vocab_size) {
      continue;  // a model with a tokenizer of its own
    }
    for (const WeightEncoding embedding : {WeightEncoding::kInt4, WeightEncoding::kInt8}) {
      const test::TemporaryFolder folder;
      const VerifyReport report =
          export_verified(model, tokenizer, {}, {}, {.embedding = embedding},
                          {.prompts = prompts, .max_tokens = 24}, folder / "model.needle");
      EXPECT_TRUE(report.passed()) << report.text();
      EXPECT_EQ(report.different_tokens + report.ties, 0) << name << "\n" << report.text();

      // And the whole token loop, free running.
      const ModelEngine deployed(deployed_model(folder / "model.needle"));
      const runtime::RuntimeEngine tested(
          runtime::Model::load(std::make_shared<const WeightsFile>(folder / "model.needle")));
      for (const auto& prompt : prompts) {
        const auto expected = generate_tokens(*deployed.start(prompt, 32), {.max_gen_len = 32});
        const auto got = generate_tokens(*tested.start(prompt, 32), {.max_gen_len = 32});
        EXPECT_EQ(got.ids, expected.ids) << name;
      }
    }
  }
}

}  // namespace
}  // namespace needle
