// needle-serve over sockets (http_test.py), with the golden folder's trained model.
#include <filesystem>

#include <gtest/gtest.h>

#include "needle/core/file.h"

#include "tests/runtime/golden_model.h"
#include "tests/support/golden.h"
#include "tests/support/program.h"

namespace needle {
namespace {

TEST(NeedleServeIntegration, AnswersManyClientsRefusesBadOnesAndStopsCleanly) {
  const std::filesystem::path checkpoint = test::golden("checkpoint/trained.pkl");
  if (!std::filesystem::exists(checkpoint)) {
    GTEST_SKIP() << checkpoint << " is missing";
  }
  const test::TemporaryFolder folder;
  std::filesystem::path tokenizer;
  for (const auto& entry : std::filesystem::directory_iterator(test::golden("tokenizer"))) {
    if (entry.path().extension() == ".model") {
      tokenizer = entry.path();
    }
  }
  const auto parameters = test::pickled_parameters(checkpoint);
  const std::filesystem::path weights = folder / "model.needle";
  test::write_weights(weights, parameters.config,
                      test::module_parameters(parameters.config, parameters.arrays),
                      WeightEncoding::kF32, read_file(tokenizer));
  std::filesystem::path python = NEEDLE_PYTHON_ENV "/bin/python3";  // has openai, if set up
  if (!std::filesystem::exists(python)) {
    python = "/usr/bin/python3";
  }
  const auto result =
      test::run_program(python, {(test::source_dir() / "tests/server/http_test.py").string(),
                                 test::built_program("needle-serve").string(), weights.string()});
  EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
}

}  // namespace
}  // namespace needle
