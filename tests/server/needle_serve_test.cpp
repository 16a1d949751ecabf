// needle-serve over sockets: the Python scripts beside this file, with the golden folder's trained
// model and a slow one.
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "tests/server/server_models.h"
#include "tests/support/golden.h"
#include "tests/support/program.h"

namespace needle {
namespace {

class NeedleServeIntegration : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!test::write_trained_model(folder_ / "model.needle") ||
        !test::write_slow_model(folder_ / "slow.needle")) {
      GTEST_SKIP() << "the golden checkpoints are missing";
    }
  }

  // The script's arguments: needle-serve, the trained model, the slow one.
  void run(const std::string& script) const {
    run_python({(test::source_dir() / "tests/server" / script).string(),
                test::built_program("needle-serve").string(), (folder_ / "model.needle").string(),
                (folder_ / "slow.needle").string()});
  }

  // A script of scripts/bench/serving, with bounds that fit a test.
  void run_bench(const std::string& script, const std::vector<std::string>& bounds) const {
    std::vector<std::string> arguments = {
        (test::source_dir() / "scripts/bench/serving" / script).string(), "--bin",
        test::built_program("needle-serve").parent_path().string(), "--model",
        (folder_ / "model.needle").string()};
    arguments.insert(arguments.end(), bounds.begin(), bounds.end());
    run_python(arguments);
  }

 private:
  static void run_python(const std::vector<std::string>& arguments) {
    std::filesystem::path python = NEEDLE_PYTHON_ENV "/bin/python3";  // has openai, if set up
    if (!std::filesystem::exists(python)) {
      python = "/usr/bin/python3";
    }
    const auto result = test::run_program(python, arguments);
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  }

  test::TemporaryFolder folder_;
};

TEST_F(NeedleServeIntegration, AnswersManyClientsRefusesBadOnesAndStopsCleanly) {
  run("http_test.py");
}

TEST_F(NeedleServeIntegration, FindsTheModelThatIsAtHand) { run("start_test.py"); }

TEST_F(NeedleServeIntegration, KeepsWhatItsApiPromises) { run("contract_test.py"); }

TEST_F(NeedleServeIntegration, BearsPressureSlownessAndItsEnd) { run("pressure_test.py"); }

TEST_F(NeedleServeIntegration, LetsNobodyInWhoMayNotAndReachesForNothing) {
  run("security_test.py");
}

TEST_F(NeedleServeIntegration, LosesAndMixesUpNoReplyUnderLoad) {
  run_bench("load.py", {"--requests", "400", "--alone", "20", "--seconds", "20", "--streams", "33",
                        "--embeddings", "10", "--ranks", "10"});
}

TEST_F(NeedleServeIntegration, StaysUpAndTidyWhateverIsSent) {
  run_bench("fuzz.py", {"--seconds", "4", "--keep", "/tmp/needle-fuzz-failures"});
}

TEST_F(NeedleServeIntegration, RoutesRequestsToToolsOfOtherMcpServers) { run("mcp_test.py"); }

}  // namespace
}  // namespace needle
