#include "needle/server/endpoint_rows.h"

#include <algorithm>
#include <functional>
#include <string>
#include <thread>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/json.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const std::vector<Tool>& tools() {
  static const std::vector<Tool> kTools = parse_tools_text(
      R"([{"name":"set_alarm","parameters":{"time":{"type":"string","required":true}},)"
      R"("templates":["wake me at {time}"]}])");
  return kTools;
}

std::string row(const std::string& time) {
  return R"({"query":"wake me at )" + time +
         R"(","answers":[{"name":"set_alarm","arguments":{"time":")" + time + R"("}}]})";
}

TEST(EndpointRowsTest, KeepsWhatFitsTheTools) {
  const ParsedRows rows = parse_endpoint_rows(
      "Here you are:\n```json\n[" + row("7") +
          R"(,{"query":"hi","answers":[]},{"query":"x","answers":[{"name":"other"}]},)"
          R"({"query":"y","answers":[{"name":"set_alarm","arguments":{"time":5}}]},)"
          R"({"answers":[]},7]
```)",
      tools());
  ASSERT_EQ(rows.lines.size(), 2U);
  EXPECT_THAT(rows.lines[0], HasSubstr("wake me at 7"));
  EXPECT_THAT(rows.lines[0], Not(HasSubstr("templates")));
  EXPECT_EQ(rows.left_out, 4);
  EXPECT_THAT(rows.first_problem, HasSubstr("rows[2].answers"));
  EXPECT_EQ(parse_endpoint_rows("{\"rows\":[" + row("8") + "]}", tools()).lines.size(), 1U);
  for (const std::string bad : {"", "no", "{}", "[", "]["}) {
    EXPECT_EQ(parse_endpoint_rows(bad, tools()).left_out, 1) << bad;
  }
}

TEST(EndpointRowsTest, AddressesThatAreNoneAreRefused) {
  for (const std::string url :
       {"", "localhost", "ftp://a/v1", "file:///etc/passwd", "http://", "http:///v1"}) {
    EXPECT_THROW(check_endpoint({.url = url, .model = "", .key = ""}), DataError) << url;
  }
  EXPECT_NO_THROW(check_endpoint({.url = "https://a.example/v1/", .model = "", .key = ""}));
  EXPECT_THROW(check_endpoint({.url = "http://a", .model = "", .key = "a\r\nX: b"}), DataError);
}

// An endpoint on this machine that answers with what a test wants.
class EndpointTest : public ::testing::Test {
 protected:
  EndpointTest() {
    server_.Post("/v1/chat/completions", [this](const httplib::Request& request,
                                                httplib::Response& response) {
      ++asked_;
      authorization_ = request.get_header_value("Authorization");
      body_ = Json::parse(request.body);
      response.status = status_;
      response.set_content(
          status_ == 200 ? Json{{"choices", {{{"message", {{"content", content_()}}}}}}}.dump()
                         : R"({"error":{"message":"no such key: secret"}})",
          "application/json");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
  }
  ~EndpointTest() override {
    server_.stop();
    thread_.join();
  }
  EndpointRequest request(std::int64_t count) const {
    return {.endpoint = {.url = format("http://127.0.0.1:{}/v1/", port_),
                         .model = "big",
                         .key = "secret"},
            .tools = tools(),
            .count = count};
  }
  std::string ask(std::int64_t count, std::string& message) {
    AtomicFileWriter rows(folder_ / "rows");
    message = write_endpoint_rows(rows, request(count));
    rows.commit();
    return read_file(folder_ / "rows");
  }

  int asked_ = 0;
  int status_ = 200;
  std::function<std::string()> content_ = [this] {
    return "[" + row(format("{}", asked_)) + "," + row(format("half past {}", asked_)) + "]";
  };
  std::string authorization_;
  Json body_;
  test::TemporaryFolder folder_;
  httplib::Server server_;
  int port_ = 0;
  std::thread thread_;
};

TEST_F(EndpointTest, AsksUntilThereAreEnough) {
  std::string message;
  const std::string text = ask(5, message);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 5);
  EXPECT_EQ(message, "");
  EXPECT_EQ(asked_, 3);
  EXPECT_EQ(authorization_, "Bearer secret");
  EXPECT_EQ(body_["model"], "big");
  EXPECT_THAT(body_["messages"][0]["content"].get<std::string>(), HasSubstr("set_alarm"));
}

TEST_F(EndpointTest, LeavesOffWhenNothingNewComes) {
  content_ = [] { return "[" + row("7") + "]"; };
  std::string message;
  const std::string text = ask(5, message);
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  EXPECT_THAT(message, HasSubstr("1 of 5 rows came"));
  EXPECT_EQ(asked_, 4);
}

TEST_F(EndpointTest, ItsErrorIsSaidWithoutTheKey) {
  status_ = 401;
  std::string message;
  try {
    ask(5, message);
    FAIL() << "no error";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("401"));
    EXPECT_THAT(error.what(), HasSubstr("no such key: ***"));
    EXPECT_THAT(error.what(), Not(HasSubstr("secret")));
  }
}

}  // namespace
}  // namespace needle
