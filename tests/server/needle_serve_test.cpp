// needle-serve over sockets: the Python scripts beside this file, with the golden folder's trained
// model and a slow one.
#include <filesystem>
#include <memory>
#include <string>

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
    std::filesystem::path python = NEEDLE_PYTHON_ENV "/bin/python3";  // has openai, if set up
    if (!std::filesystem::exists(python)) {
      python = "/usr/bin/python3";
    }
    const auto result = test::run_program(
        python, {(test::source_dir() / "tests/server" / script).string(),
                 test::built_program("needle-serve").string(), (folder_ / "model.needle").string(),
                 (folder_ / "slow.needle").string()});
    EXPECT_EQ(result.exit_code, 0) << result.out << result.err;
  }

 private:
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

TEST_F(NeedleServeIntegration, RoutesRequestsToToolsOfOtherMcpServers) { run("mcp_test.py"); }

}  // namespace
}  // namespace needle
