#include "needle/server/mcp_client.h"

#include <csignal>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::ElementsAre;
using ::testing::Pair;

TEST(McpCommandTest, SplitsWordsAsAShellWouldWithoutRunningOne) {
  EXPECT_THAT(mcp_command("uvx time-server --zone UTC").command,
              ElementsAre("uvx", "time-server", "--zone", "UTC"));
  EXPECT_THAT(mcp_command(R"(  /opt/a\ b/run  'one two' "x\"y" '' $HOME;ls )").command,
              ElementsAre("/opt/a b/run", "one two", "x\"y", "", "$HOME;ls"));
  EXPECT_EQ(mcp_command("/usr/bin/weather.py --x").name, "weather");
  for (const std::string line : {"", "   ", "'open", "\"open", "''"}) {
    EXPECT_THROW(mcp_command(line), ConfigError) << line;
  }
}

TEST(McpConfigTest, ReadsWhatOtherHostsRead) {
  const test::TemporaryFolder folder;
  write_file_atomic(folder / "servers.json",
                    R"({"mcpServers":{"clock":{"command":"uvx","args":["clock"],"env":{"TZ":"UTC"}},
                        "plain":{"command":"run"}}})");
  const auto configs = read_mcp_config(folder / "servers.json");
  ASSERT_EQ(configs.size(), 2U);
  EXPECT_EQ(configs[0].name, "clock");
  EXPECT_THAT(configs[0].command, ElementsAre("uvx", "clock"));
  EXPECT_THAT(configs[0].environment, ElementsAre(Pair("TZ", "UTC")));
  EXPECT_THAT(configs[1].command, ElementsAre("run"));
}

TEST(ChildProcessTest, SpeaksInLinesAndEndsWithItsOwner) {
  std::signal(SIGPIPE, SIG_IGN);
  const auto soon = [] { return ChildProcess::Clock::now() + std::chrono::seconds(20); };
  ChildProcess echo({"/bin/cat"}, {});
  const std::string long_line(300'000, 'x');  // more than a pipe holds
  echo.write_line("one", soon());
  EXPECT_EQ(echo.read_line(soon()), "one");
  EXPECT_FALSE(echo.read_line(ChildProcess::Clock::now()));

  ChildProcess shell({"/bin/sh", "-c", "echo $GREETING; printf 'no end'"}, {{"GREETING", "hi"}});
  EXPECT_EQ(shell.read_line(soon()), "hi");
  EXPECT_THROW(shell.read_line(soon()), Error);
  EXPECT_THROW(ChildProcess({"/absent/program"}, {}), FileError);

  ChildProcess deaf({"/bin/sleep", "100"}, {});
  EXPECT_THROW(
      deaf.write_line(long_line, ChildProcess::Clock::now() + std::chrono::milliseconds(50)),
      Error);
  const auto start = ChildProcess::Clock::now();
  { const ChildProcess stubborn({"/bin/sh", "-c", "trap '' TERM; sleep 100 & wait; wait"}, {}); }
  EXPECT_LT(ChildProcess::Clock::now() - start, std::chrono::seconds(20));
}

}  // namespace
}  // namespace needle
