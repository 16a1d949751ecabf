#include <chrono>
#include <cmath>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include <gtest/gtest.h>

#include "needle/capi/needle.h"
#include "needle/core/file.h"
#include "needle/core/json.h"

#include "tests/runtime/golden_model.h"
#include "tests/support/golden.h"
#include "tests/support/program.h"

namespace needle {
namespace {

constexpr std::string_view kTools =
    R"([{"name":"set_alarm","description":"Wake the user.","parameters":{"time":{"type":"string",)"
    R"("description":"When","required":true}}},{"name":"play","description":"Play a song.",)"
    R"("parameters":{"song":{"type":"string","description":"Title","required":true}}}])";

struct FreeModel {
  void operator()(needle_model* model) const { needle_model_free(model); }
};
struct FreeSession {
  void operator()(needle_session* session) const { needle_session_free(session); }
};
using SessionPtr = std::unique_ptr<needle_session, FreeSession>;

// The golden folder's trained model in a weights file, through the ABI only.
class CapiIntegration : public ::testing::Test {
 protected:
  static void SetUpTestSuite() {
    folder_ = std::make_unique<test::TemporaryFolder>();
    const Json cases = read_json_file(test::golden("generate/generate.json")).at("cases");
    const Json tokenizer = read_json_file(test::golden("tokenizer/tokenizer.json"));
    for (const Json& item : cases) {
      const std::string model = item.at("model");
      if (model.find(',') != std::string::npos) {
        continue;
      }
      const auto parameters = test::pickled_parameters(test::golden("checkpoint/" + model));
      path_ = (*folder_ / "model.needle").string();
      test::write_weights(
          path_, parameters.config, test::module_parameters(parameters.config, parameters.arrays),
          WeightEncoding::kF32,
          read_file(test::golden("tokenizer") / tokenizer.at("model").get<std::string>()));
      break;
    }
    needle_model* model = nullptr;
    ASSERT_EQ(needle_model_load(path_.c_str(), nullptr, &model), NEEDLE_OK) << needle_last_error();
    model_.reset(model);
  }
  static void TearDownTestSuite() {
    model_.reset();
    folder_.reset();
  }

  static SessionPtr session(std::string_view tools = kTools) {
    needle_session* made = nullptr;
    EXPECT_EQ(needle_session_create(model_.get(), tools.data(), tools.size(), &made), NEEDLE_OK)
        << needle_last_error();
    return SessionPtr(made);
  }
  static needle_status generate(needle_session* session, std::string_view query,
                                needle_result& result, needle_generate_options options = {64, -1},
                                needle_text_callback on_text = nullptr, void* user = nullptr) {
    return needle_generate(session, query.data(), query.size(), &options, on_text, user, &result);
  }

  static std::unique_ptr<test::TemporaryFolder> folder_;
  static std::string path_;
  static std::unique_ptr<needle_model, FreeModel> model_;
};
std::unique_ptr<test::TemporaryFolder> CapiIntegration::folder_;
std::string CapiIntegration::path_;
std::unique_ptr<needle_model, FreeModel> CapiIntegration::model_;

int collect(void* user, const char* text, std::size_t bytes) {
  static_cast<std::string*>(user)->append(text, bytes);
  return 1;
}

TEST_F(CapiIntegration, AnswersWithCallsAndStreamsThem) {
  const auto one = session();
  std::string streamed;
  needle_result result{};
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result, {64, -1}, collect, &streamed), NEEDLE_OK)
      << needle_last_error();
  EXPECT_EQ(std::string(result.text).size(), result.text_bytes);
  EXPECT_TRUE(Json::parse(result.text).is_array()) << result.text;
  EXPECT_TRUE(Json::parse(streamed).is_array()) << streamed;
  EXPECT_EQ(result.stop, NEEDLE_STOP_EOS);
  EXPECT_GT(result.prompt_tokens, 0);
  EXPECT_GT(result.tokens, 0);
  // Again, and from a session of its own: the same bytes.
  const std::string first = result.text;
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result), NEEDLE_OK);
  EXPECT_EQ(result.text, first);
  const auto other = session();
  ASSERT_EQ(generate(other.get(), "Wake me at 7", result), NEEDLE_OK);
  EXPECT_EQ(result.text, first);
}

TEST_F(CapiIntegration, SessionsOfABatchAnswerAsAlone) {
  const std::string_view queries[] = {"Wake me at 7", "Play Hello", "", "Wake me at 8 and play"};
  constexpr std::size_t kCount = std::size(queries);
  std::vector<SessionPtr> sessions;
  std::vector<std::string> alone;
  for (const std::string_view query : queries) {
    sessions.push_back(session(sessions.size() == 2 ? "[]" : kTools));
    needle_result result{};
    ASSERT_EQ(generate(sessions.back().get(), query, result), NEEDLE_OK) << needle_last_error();
    alone.emplace_back(result.text);
  }
  const needle_generate_options options{64, -1};
  std::vector<std::string> streamed(kCount);
  std::vector<needle_batch_item> items(kCount);
  for (std::size_t i = 0; i < kCount; ++i) {
    items[i] = {.session = sessions[i].get(),
                .query = queries[i].data(),
                .query_bytes = queries[i].size(),
                .options = &options,
                .on_text = collect,
                .user = &streamed[i],
                .result = {}};
  }
  ASSERT_EQ(needle_generate_batch(items.data(), kCount), NEEDLE_OK) << needle_last_error();
  for (std::size_t i = 0; i < kCount; ++i) {
    EXPECT_EQ(items[i].result.text, alone[i]);
    EXPECT_EQ(items[i].result.stop, NEEDLE_STOP_EOS);
    EXPECT_FALSE(streamed[i].empty());
  }
  // One is late, one cancelled, one throws: each ends alone.
  const needle_generate_options late{64, 0};
  items[0].options = &late;
  items[1].on_text = [](void* user, const char*, std::size_t) {
    needle_session_cancel(static_cast<needle_session*>(user));
    return 1;
  };
  items[1].user = sessions[1].get();
  items[2].on_text = [](void*, const char*, std::size_t) -> int {
    throw std::runtime_error("mine");
  };
  EXPECT_EQ(needle_generate_batch(items.data(), kCount), NEEDLE_CALLBACK_ERROR);
  EXPECT_EQ(std::string(needle_last_error()), "needle_generate_batch: the callback threw");
  EXPECT_EQ(items[0].result.stop, NEEDLE_STOP_DEADLINE);
  EXPECT_EQ(items[1].result.stop, NEEDLE_STOP_CANCELLED);
  EXPECT_EQ(items[2].result.stop, NEEDLE_STOP_CANCELLED);
  EXPECT_EQ(items[3].result.text, alone[3]);
  EXPECT_EQ(needle_generate_batch(nullptr, 0), NEEDLE_OK);
}

TEST_F(CapiIntegration, ABatchThatCannotBeIsRefused) {
  const auto one = session();
  needle_model* other_model = nullptr;
  ASSERT_EQ(needle_model_load(path_.c_str(), nullptr, &other_model), NEEDLE_OK);
  needle_session* made = nullptr;
  ASSERT_EQ(needle_session_create(other_model, kTools.data(), kTools.size(), &made), NEEDLE_OK);
  const SessionPtr stranger(made);
  needle_model_free(other_model);
  needle_batch_item items[2] = {};
  const auto expect = [&](std::string_view message) {
    EXPECT_EQ(needle_generate_batch(items, 2), NEEDLE_INVALID_ARGUMENT);
    EXPECT_EQ(std::string_view(needle_last_error()),
              "needle_generate_batch: " + std::string(message));
  };
  EXPECT_EQ(needle_generate_batch(nullptr, 1), NEEDLE_INVALID_ARGUMENT);
  items[0].session = one.get();
  expect("session is null");
  items[1].session = one.get();
  expect("session 1 of 2 is there twice");
  items[1].session = stranger.get();
  expect("session 1 of 2 is of another model than the first");
}

TEST_F(CapiIntegration, ASessionOutlivesItsModel) {
  needle_model* model = nullptr;
  ASSERT_EQ(needle_model_load(path_.c_str(), nullptr, &model), NEEDLE_OK);
  needle_session* made = nullptr;
  ASSERT_EQ(needle_session_create(model, kTools.data(), kTools.size(), &made), NEEDLE_OK);
  const SessionPtr kept(made);
  needle_model_free(model);
  needle_result result{};
  EXPECT_EQ(generate(kept.get(), "Wake me at 7", result), NEEDLE_OK) << needle_last_error();
}

TEST_F(CapiIntegration, StopsWhenTheCallbackSaysSo) {
  const auto one = session();
  needle_result result{};
  const auto stop = [](void* user, const char*, std::size_t) {
    ++*static_cast<int*>(user);
    return 0;
  };
  int pieces = 0;
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result, {64, -1}, stop, &pieces), NEEDLE_OK);
  EXPECT_EQ(result.stop, NEEDLE_STOP_CANCELLED);
  EXPECT_EQ(pieces, 1);
  const auto cancel = [](void* user, const char*, std::size_t) {
    needle_session_cancel(static_cast<needle_session*>(user));
    return 1;
  };
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result, {64, -1}, cancel, one.get()), NEEDLE_OK);
  EXPECT_EQ(result.stop, NEEDLE_STOP_CANCELLED);
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result), NEEDLE_OK);
  EXPECT_EQ(result.stop, NEEDLE_STOP_EOS);  // the cancellation is over
}

TEST_F(CapiIntegration, AThrowingCallbackBecomesAStatus) {
  const auto one = session();
  needle_result result{};
  const auto thrower = [](void*, const char*, std::size_t) -> int {
    throw std::runtime_error("mine");
  };
  EXPECT_EQ(generate(one.get(), "Wake me at 7", result, {64, -1}, thrower), NEEDLE_CALLBACK_ERROR);
  EXPECT_EQ(std::string(needle_last_error()), "needle_generate: the callback threw");
  EXPECT_EQ(generate(one.get(), "Wake me at 7", result), NEEDLE_OK);
}

TEST_F(CapiIntegration, KeepsDeadlines) {
  const auto one = session();
  needle_result result{};
  int pieces = 0;
  const auto count = [](void* user, const char*, std::size_t) {
    return ++*static_cast<int*>(user);
  };
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result, {64, 0}, count, &pieces), NEEDLE_OK);
  EXPECT_EQ(result.stop, NEEDLE_STOP_DEADLINE);
  EXPECT_EQ(result.text_bytes, 0U);
  EXPECT_EQ(pieces, 0);
  const auto dawdle = [](void* user, const char*, std::size_t) {
    const auto until = std::chrono::steady_clock::now() + std::chrono::milliseconds(30);
    while (std::chrono::steady_clock::now() < until) {
    }
    return ++*static_cast<int*>(user);
  };
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result, {64, 20}, dawdle, &pieces), NEEDLE_OK);
  EXPECT_EQ(result.stop, NEEDLE_STOP_DEADLINE);
  EXPECT_EQ(pieces, 1);
  ASSERT_EQ(generate(one.get(), "Wake me at 7", result, {64, INT64_MAX}), NEEDLE_OK);
  EXPECT_EQ(result.stop, NEEDLE_STOP_EOS);
}

TEST_F(CapiIntegration, LoadsFromMemoryAndTrustsOnRequest) {
  needle_result result{};
  const auto whole = session();
  ASSERT_EQ(generate(whole.get(), "Wake me at 7", result), NEEDLE_OK);
  const std::string expected = result.text;
  std::string bytes = read_file(path_);
  const auto answer = [&](const needle_load_options* options) -> std::string {
    needle_model* model = nullptr;
    if (needle_model_load_memory(bytes.data(), bytes.size(), options, &model) != NEEDLE_OK) {
      return needle_last_error();
    }
    needle_session* made = nullptr;
    EXPECT_EQ(needle_session_create(model, kTools.data(), kTools.size(), &made), NEEDLE_OK);
    needle_model_free(model);
    const SessionPtr kept(made);
    EXPECT_EQ(generate(kept.get(), "Wake me at 7", result), NEEDLE_OK) << needle_last_error();
    return result.text;
  };
  EXPECT_EQ(answer(nullptr), expected);
  bytes.back() = static_cast<char>(bytes.back() ^ 1);  // log_temp, which answers do not need
  EXPECT_NE(answer(nullptr).find("is damaged"), std::string::npos);
  const needle_load_options trusting = {.threads = 1, .skip_checksums = 1};
  EXPECT_EQ(answer(&trusting), expected);
  needle_model* model = nullptr;
  EXPECT_EQ(needle_model_load_memory(nullptr, 5, nullptr, &model), NEEDLE_INVALID_ARGUMENT);
  EXPECT_EQ(needle_model_load_memory(bytes.data(), 0, nullptr, &model), NEEDLE_FORMAT_ERROR);
  EXPECT_EQ(model, nullptr);
}

TEST_F(CapiIntegration, TakesHostileQueriesAndNoTools) {
  needle_result result{};
  const std::string broken("a\xFF\xC3\0\xED\xA0\x80", 7);
  const auto one = session();
  EXPECT_EQ(generate(one.get(), broken, result), NEEDLE_OK) << needle_last_error();
  EXPECT_EQ(generate(one.get(), "", result), NEEDLE_OK) << needle_last_error();
  EXPECT_EQ(needle_generate(one.get(), nullptr, 0, nullptr, nullptr, nullptr, &result), NEEDLE_OK);
  std::string longer;
  for (int i = 0; i < 3000; ++i) {
    longer += "wake me ";
  }
  ASSERT_EQ(generate(one.get(), longer, result), NEEDLE_OK) << needle_last_error();
  EXPECT_GT(result.cut_tokens, 0);
  const auto none = session("[]");
  ASSERT_EQ(generate(none.get(), "Wake me at 7", result), NEEDLE_OK) << needle_last_error();
  EXPECT_EQ(std::string(result.text), "[]");
  std::size_t count = 5;
  needle_ranked_tool ranked[5];
  ASSERT_EQ(needle_rank_tools(none.get(), "x", 1, ranked, &count), NEEDLE_OK);
  EXPECT_EQ(count, 0U);
}

TEST_F(CapiIntegration, EmbedsAndRanks) {
  std::size_t count = 0;
  EXPECT_EQ(needle_embed(model_.get(), "x", 1, nullptr, &count), NEEDLE_INVALID_ARGUMENT);
  ASSERT_GT(count, 0U);
  std::vector<float> values(count);
  ASSERT_EQ(needle_embed(model_.get(), "x", 1, values.data(), &count), NEEDLE_OK);
  double squares = 0;
  for (const float value : values) {
    squares += static_cast<double>(value) * value;
  }
  EXPECT_NEAR(std::sqrt(squares), 1.0, 1e-4);
  const auto one = session();
  needle_ranked_tool ranked[5];
  std::size_t tools = 5;
  ASSERT_EQ(needle_rank_tools(one.get(), "a song", 6, ranked, &tools), NEEDLE_OK);
  ASSERT_EQ(tools, 2U);
  EXPECT_GE(ranked[0].score, ranked[1].score);
  EXPECT_NE(ranked[0].index, ranked[1].index);
}

TEST_F(CapiIntegration, NamesWhatIsWrong) {
  needle_model* model = nullptr;
  EXPECT_EQ(needle_model_load("/absent.needle", nullptr, &model), NEEDLE_FILE_ERROR);
  EXPECT_NE(std::string(needle_last_error()).find("/absent.needle"), std::string::npos);
  EXPECT_EQ(model, nullptr);
  const std::string damaged = (*folder_ / "damaged.needle").string();
  std::string bytes = read_file(path_);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  write_file_atomic(damaged, bytes);
  EXPECT_EQ(needle_model_load(damaged.c_str(), nullptr, &model), NEEDLE_FORMAT_ERROR);
  EXPECT_EQ(needle_model_load(nullptr, nullptr, &model), NEEDLE_INVALID_ARGUMENT);
  needle_session* made = nullptr;
  EXPECT_EQ(needle_session_create(model_.get(), "{", 1, &made), NEEDLE_DATA_ERROR);
  EXPECT_EQ(made, nullptr);
  EXPECT_EQ(needle_session_create(nullptr, "[]", 2, &made), NEEDLE_INVALID_ARGUMENT);
  const auto one = session();
  needle_result result{};
  EXPECT_EQ(generate(one.get(), "x", result, {-1, -1}), NEEDLE_INVALID_ARGUMENT);
  EXPECT_EQ(generate(nullptr, "x", result), NEEDLE_INVALID_ARGUMENT);
  EXPECT_EQ(needle_abi_version(), NEEDLE_ABI_VERSION);
  needle_model_free(nullptr);
  needle_session_free(nullptr);
  needle_session_cancel(nullptr);
}

TEST_F(CapiIntegration, ACProgramAnswers) {
  const auto program = test::built_program("example-generate-c");
  const auto result = test::run_program(program, {path_, "Wake me at 7"}, "");
  ASSERT_EQ(result.exit_code, 0) << result.err;
  EXPECT_TRUE(Json::parse(result.out).is_array()) << result.out;
  EXPECT_EQ(test::run_program(program, {"/absent.needle", "x"}, "").exit_code, 1);
  EXPECT_EQ(test::run_program(program, {}, "").exit_code, 2);
}

}  // namespace
}  // namespace needle
