#include "needle/server/playground.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/file.h"
#include "needle/server/api_error.h"
#include "needle/server/job_rows.h"

#include "tests/server/fake_trainer.h"
#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

const Json kTools = Json::parse(
    R"([{"type":"function","function":{"name":"set_alarm","description":"Set an alarm","parameters":
    {"type":"object","properties":{"time":{"type":"string"}},"required":["time"]}}},
    {"name":"play","description":"Play music","inputSchema":{"type":"object","properties":{"song":{"type":"string"}}}}])");

struct Answer {
  int status = 0;
  Json json;
  std::string body;
};

class PlaygroundTest : public ::testing::Test {
 protected:
  PlaygroundTest()
      : playground_({.folder = folder_.path(),
                     .released = {},
                     .train_program = fake_.folder / "needle-train",
                     .export_program = fake_.folder / "needle-export",
                     .min_free_bytes = 0}) {}

  Answer ask(const std::string& method, const std::string& path, const std::string& body,
             HttpHeaders more = {}) {
    HttpRequest request{.method = method, .path = "/playground/" + path, .body = body};
    request.from_this_machine = true;
    request.headers = std::move(more);
    request.headers.try_emplace("Host", "localhost:7860");
    request.headers.try_emplace("Content-Type", "application/json");
    HttpReply reply;
    try {
      playground_.check_head(request);
      reply = playground_.handle(request);
      if (reply.stream) {
        reply.stream([&](std::string_view bytes) {
          reply.body += bytes;
          return true;
        });
      }
    } catch (const ApiError& error) {
      reply = error.to_reply();
    }
    return {.status = reply.status,
            .json = Json::parse(reply.body, nullptr, false),
            .body = reply.body};
  }
  Answer get(const std::string& path) { return ask("GET", path, ""); }
  Answer post(const std::string& path, const Json& body) { return ask("POST", path, body.dump()); }
  Answer synth(std::int64_t count) {
    return post(
        "jobs",
        {{"name", "mine"}, {"tools", kTools}, {"source", {{"kind", "synth"}, {"count", count}}}});
  }
  std::string upload(const std::string& kind, const std::string& bytes) {
    const std::string id =
        post("uploads", {{"kind", kind}, {"bytes", bytes.size()}}).json.value("id", "");
    EXPECT_EQ(ask("POST", "uploads/" + id, bytes,
                  {{"Content-Type", "application/octet-stream"}, {"Upload-Offset", "0"}})
                  .json.value("received", 0U),
              bytes.size());
    return id;
  }
  Answer wait(const std::string& id) {
    for (;;) {
      const Answer answer = get("jobs/" + id);
      const std::string stage = answer.json.value("stage", "");
      if (stage != "training" && stage != "exporting" && stage != "making") {
        return answer;
      }
    }
  }

  test::TemporaryFolder folder_;
  test::FakeTrainer fake_{folder_ / "programs"};
  Playground playground_;
};

TEST_F(PlaygroundTest, AnswersToThisMachineAlone) {
  HttpRequest request{.method = "GET", .path = "/playground/status"};
  const auto status = [&] {
    try {
      check_local(request);
    } catch (const ApiError& error) {
      return error.status();
    }
    return 200;
  };
  request.headers = {{"Host", "127.0.0.1:7860"}};
  EXPECT_EQ(status(), 403);
  request.from_this_machine = true;
  EXPECT_EQ(status(), 200);
  const HttpHeaders good = request.headers;
  const std::vector<std::pair<std::string, std::string>> strange = {
      {"Host", "evil.example"},
      {"Origin", "http://evil.example"},
      {"Origin", "null"},
      {"X-Forwarded-For", "10.0.0.1"},
      {"Forwarded", "for=10.0.0.1"},
      {"Sec-Fetch-Site", "cross-site"}};
  for (const auto& [name, value] : strange) {
    request.headers = good;
    request.headers[name] = value;
    EXPECT_EQ(status(), 403) << name;
  }
  request.headers = good;
  request.headers["Origin"] = "http://127.0.0.1:7860";
  request.headers["Sec-Fetch-Site"] = "same-origin";
  EXPECT_EQ(status(), 200);
}

TEST_F(PlaygroundTest, UnknownRoutesMethodsAndTypesAreRefused) {
  EXPECT_EQ(get("nothing").status, 404);
  EXPECT_EQ(get("jobs/../../etc/passwd").status, 404);
  EXPECT_EQ(get("uploads").status, 405);
  EXPECT_EQ(ask("POST", "jobs", "{}", {{"Content-Type", "text/plain"}}).status, 415);
  EXPECT_EQ(ask("POST", "jobs", "{").status, 400);
  EXPECT_EQ(post("jobs", Json::object()).status, 400);
  EXPECT_EQ(post("jobs", {{"source", {{"kind", "synth"}}}}).status, 400);  // no tools
  EXPECT_EQ(post("jobs", {{"name", "../x"}, {"source", {{"kind", "synth"}}}}).status, 400);
  EXPECT_EQ(synth(kMaxMadeRows + 1).status, 400);
  for (const std::string path : {"jobs/nope", "jobs/nope/rows/0", "jobs/nope/bundle"}) {
    EXPECT_EQ(get(path).status, 404) << path;
  }
  EXPECT_EQ(get("jobs/nope/rows/-1").status, 400);
}

TEST_F(PlaygroundTest, RowsAreMadeCheckedShownAndAddedTo) {
  const Answer made = synth(200);
  ASSERT_EQ(made.status, 200) << made.body;
  EXPECT_EQ(made.json["stage"], "draft");
  EXPECT_EQ(made.json["check"]["rows"], 200);
  EXPECT_TRUE(made.json["check"]["ok"]);
  const std::string id = made.json["id"];
  const Answer rows = get("jobs/" + id + "/rows/190");
  ASSERT_EQ(rows.json["rows"].size(), 10U);
  EXPECT_EQ(rows.json["rows"][0]["line"], 191);
  EXPECT_FALSE(rows.json["rows"][0]["query"].get<std::string>().empty());

  const auto add = [&](const Json& answers) {
    return post("jobs/" + id + "/rows",
                {{"rows", {{{"query", "wake me at dawn"}, {"answers", answers}}}}});
  };
  EXPECT_EQ(add({{{"name", "set_alarm"}, {"arguments", {{"time", "dawn"}}}}}).json["check"]["rows"],
            201);
  const Answer bad = add({{{"name", "set_alarm"}, {"arguments", {{"tim", "dawn"}}}}});
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(bad.json["error"]["param"], "rows[0]");
  EXPECT_THAT(bad.json["error"]["message"].get<std::string>(),
              HasSubstr("rows[0].answers[0].arguments"));
}

TEST_F(PlaygroundTest, TheWholeWayToABundle) {
  const std::string id = synth(50).json["id"];
  EXPECT_EQ(get("jobs/" + id + "/bundle").status, 409);
  EXPECT_EQ(post("jobs/" + id + "/start", {{"shape", "huge"}}).status, 400);
  EXPECT_EQ(post("jobs/" + id + "/start", {{"base", "released"}}).status, 400);
  EXPECT_EQ(post("jobs/" + id + "/start", {{"base", "../../x"}}).status, 404);
  EXPECT_EQ(post("jobs/" + id + "/start", {{"shape", "tiny"}, {"epochs", 2}}).status, 200);
  const Answer done = wait(id);
  ASSERT_EQ(done.json["stage"], "done") << done.body;
  EXPECT_EQ(done.json["model"], "mine");
  EXPECT_TRUE(std::filesystem::exists(folder_ / "models" / "mine.needle"));
  const Answer zip = get("jobs/" + id + "/bundle");
  EXPECT_TRUE(zip.body.starts_with("PK"));
  EXPECT_THAT(zip.body, HasSubstr("mine/mine.needle"));
  EXPECT_THAT(zip.body, HasSubstr("needle-serve --model mine.needle"));

  // What it got wrong, corrected, begins the next one, from where this one ended.
  const Answer next = post(
      "jobs",
      {{"source", {{"kind", "job"}, {"job", id}}},
       {"rows",
        {{{"query", "sing"}, {"answers", {{{"name", "play"}, {"arguments", Json::object()}}}}}}}});
  ASSERT_EQ(next.status, 200) << next.body;
  EXPECT_EQ(next.json["check"]["rows"], 51);
  const std::string second = next.json["id"];
  EXPECT_EQ(post("jobs/" + second + "/start", {{"base", id}}).status, 200);
  EXPECT_EQ(wait(second).json["stage"], "done");
  EXPECT_THAT(fake_.calls(),
              HasSubstr("--checkpoint " + (folder_ / "jobs" / id / "run/bundle").string()));
  EXPECT_EQ(post("jobs/" + id + "/remove", Json::object()).json["data"].size(), 1U);
}

TEST_F(PlaygroundTest, RowsMayComeFromAFile) {
  const Answer refused =
      post("jobs", {{"source", {{"kind", "upload"}, {"upload", upload("rows", "nonsense\n")}}}});
  EXPECT_EQ(refused.status, 400);
  EXPECT_THAT(refused.body, HasSubstr("no row that can be trained on"));
  const std::string row = R"({"query":"a","tools":[{"name":"x","parameters":{}}],"answers":[]})"
                          "\n";
  const Answer taken =
      post("jobs",
           {{"source", {{"kind", "upload"}, {"upload", upload("rows", row + "{broken\n" + row)}}}});
  ASSERT_EQ(taken.status, 200) << taken.body;
  EXPECT_EQ(taken.json["check"]["rows"], 2);
  EXPECT_FALSE(taken.json["check"]["ok"]);  // said, not hidden: needle-train would refuse it
  const std::string id = taken.json["id"];
  EXPECT_EQ(get("jobs/" + id + "/tools").json[0]["name"], "x");
  EXPECT_TRUE(get("jobs/" + id + "/rows/0").json["rows"][1].contains("problem"));
}

TEST_F(PlaygroundTest, OnlyModelsBecomeModels) {
  const Answer bad = post("models", {{"name", "x"}, {"upload", upload("model", "no weights")}});
  EXPECT_EQ(bad.status, 400);
  EXPECT_EQ(bad.json["error"]["code"], "not_a_model");
  EXPECT_THAT(bad.body, Not(HasSubstr(folder_.path().string())));
  EXPECT_FALSE(std::filesystem::exists(folder_ / "models" / "x.needle"));
  EXPECT_TRUE(std::filesystem::is_empty(folder_ / "uploads"));
  for (const std::string name : {"../x", "a/b", ".x", "", "x y"}) {
    EXPECT_EQ(post("models", {{"name", name}, {"upload", "1"}}).status, 400) << name;
  }
  write_file_atomic(folder_ / "models" / "there.needle", "");
  EXPECT_EQ(post("models", {{"name", "there"}, {"upload", "1"}}).status, 409);
}

// However full the disk is: room would not help.
TEST_F(PlaygroundTest, WhatIsTooLargeIsRefusedForItsSize) {
  for (const std::string kind : {"model", "rows"}) {
    const Answer refused = post("uploads", {{"kind", kind}, {"bytes", std::int64_t{1} << 49}});
    EXPECT_EQ(refused.status, 413) << refused.body;
    EXPECT_EQ(refused.json["error"]["code"], "file_too_large");
  }
}

TEST_F(PlaygroundTest, TheKeyOfAnEndpointIsNotKept) {
  const Answer made = post("jobs", {{"tools", kTools},
                                    {"source",
                                     {{"kind", "endpoint"},
                                      {"count", 5},
                                      {"url", "http://127.0.0.1:9/v1"},
                                      {"model", "m"},
                                      {"key", "top-secret"}}}});
  ASSERT_EQ(made.status, 200) << made.body;
  const std::string id = made.json["id"];
  EXPECT_EQ(wait(id).json["stage"], "failed");  // nobody listens there
  for (const auto& item : std::filesystem::recursive_directory_iterator(folder_.path())) {
    if (item.is_regular_file()) {
      EXPECT_THAT(read_file(item.path()), Not(HasSubstr("top-secret"))) << item.path();
    }
  }
  EXPECT_EQ(
      post("jobs", {{"tools", kTools}, {"source", {{"kind", "endpoint"}, {"url", "file:///etc"}}}})
          .status,
      400);
}

}  // namespace
}  // namespace needle
