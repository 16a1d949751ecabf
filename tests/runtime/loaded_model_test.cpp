// The public C++ way in, with random weights and a tokenizer of single letters.
#include "needle/runtime/loaded_model.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/random.h"
#include "needle/text/model_proto.h"

#include "tests/runtime/allocation_counter.h"
#include "tests/runtime/golden_model.h"
#include "tests/support/golden.h"

namespace needle::runtime {
namespace {

const ModelConfig kConfig{.vocab_size = 320,
                          .d_model = 64,
                          .num_heads = 4,
                          .num_kv_heads = 2,
                          .num_encoder_layers = 3,
                          .num_decoder_layers = 2,
                          .max_seq_len = 64,
                          .contrastive_dim = 10};
constexpr std::string_view kTools =
    R"([{"name":"set_alarm","description":"Wake","parameters":{"time":{"type":"string",)"
    R"("required":true},"days":{"type":"array","items":{"type":"string"}}}}])";

std::string letters_tokenizer() {
  std::vector<VocabularyPiece> pieces = {{"<pad>"}, {"</s>"},        {"<s>"},
                                         {"<unk>"}, {"<tool_call>"}, {"<tools>"}};
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  for (std::size_t byte = 0; byte < 256; ++byte) {
    pieces.push_back({std::string("<0x") + kDigits[byte / 16] + kDigits[byte % 16] + ">"});
  }
  for (int i = 0; std::ssize(pieces) < kConfig.vocab_size; ++i) {
    pieces.push_back({std::string(1, static_cast<char>('A' + i))});
  }
  return model_proto_of_vocabulary(pieces);
}

std::string model_file(const std::filesystem::path& path, std::uint64_t seed) {
  std::map<std::string, std::vector<float>> parameters;
  Random random(seed);
  for (const TensorSpec& spec : expected_tensors(kConfig)) {
    std::size_t count = 1;
    for (const std::int64_t side : spec.shape) {
      count *= static_cast<std::size_t>(side);
    }
    std::vector<float> values(count);
    for (float& value : values) {
      value = static_cast<float>(0.3 * random.normal());
    }
    parameters.emplace(spec.name, std::move(values));
  }
  // The special pieces' logits are 0, and one of the others is above: a free answer goes on for
  // ever and is text.
  std::fill_n(parameters.at("embedding.weight").begin(), (kToolsId + 1) * kConfig.d_model, 0.0f);
  test::write_weights(path, kConfig, parameters, WeightEncoding::kInt4, letters_tokenizer());
  return path.string();
}

class LoadedModelTest : public ::testing::Test {
 protected:
  static CallRequest request(std::string query, Constrain constrain = Constrain::kGrammar) {
    return {.query = std::move(query),
            .tools_json = std::string(kTools),
            .max_gen_len = 120,
            .constrain = constrain};
  }

  test::TemporaryFolder folder_;
  std::string file_ = model_file(folder_ / "model.needle", 1);
};

TEST_F(LoadedModelTest, MemoryIsAsGoodAsAFile) {
  const std::string expected = LoadedModel::load(file_).call(request("WAKE ME")).text;
  const std::string bytes = read_file(file_);
  // One start is a multiple of 64, most are none: those are copied.
  std::vector<std::byte> room(bytes.size() + 128);
  for (const std::size_t shift : {0, 1, 16, 32, 48, 64}) {
    std::memcpy(room.data() + shift, bytes.data(), bytes.size());
    const LoadedModel model =
        LoadedModel::load_memory(std::span(room).subspan(shift, bytes.size()));
    EXPECT_EQ(model.call(request("WAKE ME")).text, expected);
    EXPECT_EQ(model.file_bytes(), bytes.size());
  }
  alignas(64) static std::byte flash[1 << 20];
  ASSERT_LE(bytes.size(), sizeof flash);
  std::memcpy(flash, bytes.data(), bytes.size());
  const LoadedModel model = LoadedModel::load_memory(std::span(flash).first(bytes.size()));
  const auto section = model.engine().model().file->vector("encoder.final_norm.scale");
  const auto* const at = reinterpret_cast<const std::byte*>(section.data());
  EXPECT_TRUE(at >= flash && at < flash + bytes.size()) << "it was copied";
  EXPECT_THROW(LoadedModel::load_memory(std::span(flash).first(bytes.size() - 1)), FormatError);
  EXPECT_THROW(LoadedModel::load_memory({}), FormatError);
}

// The same file with other tables of the tokenizer, or with none.
void write_with_tables(const std::string& from, const std::string& to,
                       std::span<const std::byte> tables) {
  const WeightsFile file(from);
  WeightsFileWriter writer(file.model_config(), file.config());
  writer.add_tokenizer(file.tokenizer_model(), tables);
  for (const WeightsSection& section : file.sections()) {
    if (section.type != SectionType::kJson && section.type != SectionType::kBytes) {
      writer.add_section(file, section);
    }
  }
  writer.write(to);
}

TEST_F(LoadedModelTest, TablesOfTheTokenizerAreUsedInTheFileAndMayBeMissing) {
  const LoadedModel model = LoadedModel::load(file_);
  const std::string expected = model.call(request("WAKE ME")).text;
  const std::span<const std::byte> stored = model.engine().model().file->vocabulary();
  EXPECT_EQ(model.tokenizer().tables().data(), stored.data()) << "they were copied";
  // As files were before there were tables.
  const std::string old = folder_ / "old.needle";
  write_with_tables(file_, old, {});
  EXPECT_EQ(LoadedModel::load(old).call(request("WAKE ME")).text, expected);
  // A tokenizer may outlive its model: it keeps the file.
  const Tokenizer kept = [&] { return LoadedModel::load(file_).tokenizer(); }();
  EXPECT_EQ(kept.encode("WAKE ME"), model.tokenizer().encode("WAKE ME"));
  std::vector<std::byte> damaged(stored.begin(), stored.end());
  damaged.resize(damaged.size() - 1);
  write_with_tables(file_, old, damaged);
  EXPECT_THROW(LoadedModel::load(old), FormatError);
}

TEST_F(LoadedModelTest, ChecksumsCanBeSkipped) {
  std::string bytes = read_file(file_);
  bytes[bytes.size() - 4096] = static_cast<char>(bytes[bytes.size() - 4096] ^ 1);
  write_file_atomic(file_, bytes);
  EXPECT_THROW(LoadedModel::load(file_), FormatError);
  EXPECT_NO_THROW(LoadedModel::load(file_, {.verify_checksums = false}));
}

TEST_F(LoadedModelTest, StopsBetweenTheLayersOfThePrompt) {
  const LoadedModel model = LoadedModel::load(file_);
  const std::string whole = model.call(request("WAKE ME")).text;
  // 3 encoder layers, 2 of cross-attention; the sixth question comes with the first token.
  for (int last = 1; last <= 8; ++last) {
    CallRequest stopped = request("WAKE ME");
    int asked = 0;
    int pieces = 0;
    stopped.cancelled = [&] { return ++asked >= last; };
    stopped.on_text = [&](std::string_view) { return ++pieces > 0; };
    const CallResult result = model.call(stopped);
    EXPECT_EQ(result.stop, StopReason::kCancelled);
    EXPECT_EQ(asked, last) << "asked again";
    EXPECT_EQ(std::ssize(result.ids), std::max(0, last - 5)) << last;
    EXPECT_GT(result.prompt_ids.size(), 0u);
  }
  CallRequest never = request("WAKE ME");
  int asked = 0;
  never.cancelled = [&] { return ++asked < 0; };
  EXPECT_EQ(model.call(never).text, whole);
  EXPECT_GT(asked, 5);
}

TEST_F(LoadedModelTest, ACallbackMayThrow) {
  for (const std::size_t threads : {1, 2}) {
    const LoadedModel model = LoadedModel::load(file_, {.threads = threads});
    const std::string whole = model.call(request("WAKE ME")).text;
    CallRequest bad = request("WAKE ME");
    bad.on_text = [](std::string_view) -> bool { throw std::runtime_error("mine"); };
    EXPECT_THROW(model.call(bad), std::runtime_error);
    EXPECT_EQ(model.call(request("WAKE ME")).text, whole);
    CallRequest bad_stop = request("WAKE ME");
    bad_stop.cancelled = []() -> bool { throw std::runtime_error("mine"); };
    EXPECT_THROW(model.call(bad_stop), std::runtime_error);
    EXPECT_EQ(model.call(request("WAKE ME")).text, whole);
  }
}

TEST_F(LoadedModelTest, SeveralModelsAnswerSeveralThreads) {
  std::vector<LoadedModel> models;
  models.push_back(LoadedModel::load(file_, {.threads = 2}));
  models.push_back(LoadedModel::load(model_file(folder_ / "other.needle", 2)));
  models.push_back(LoadedModel::load(file_, {.numerics = Numerics::kFloat}));
  const std::vector<std::string> queries = {"WAKE ME", "A", "", "SOMETHING LONGER AT NOON"};
  std::vector<std::string> expected;
  for (const LoadedModel& model : models) {
    for (const std::string& query : queries) {
      expected.push_back(model.call(request(query, Constrain::kNone)).raw_text);
    }
  }
  EXPECT_NE(expected[0], expected[4]) << "the models are the same";
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (std::size_t thread = 0; thread < 4; ++thread) {
    threads.emplace_back([&, thread] {
      for (std::size_t i = 0; i < 24; ++i) {
        const std::size_t at = (i * 5 + thread * 7) % expected.size();
        const LoadedModel model = models[at / queries.size()];  // a copy shares the weights
        const auto got = model.call(request(queries[at % queries.size()], Constrain::kNone));
        wrong += got.raw_text == expected[at] ? 0 : 1;
      }
    });
  }
  for (std::thread& thread : threads) {
    thread.join();
  }
  EXPECT_EQ(wrong, 0);
}

// What is asked in different ways at once: constraints, lengths, details, other tools.
std::vector<CallRequest> mixed_requests() {
  std::vector<CallRequest> mix;
  for (int i = 0; i < 30; ++i) {  // more than a pass has rows
    CallRequest one{.query = std::string(static_cast<std::size_t>(i % 7) * 5, 'A') + " WAKE ME",
                    .tools_json = i % 4 == 0 ? "[]" : std::string(kTools),
                    .max_gen_len = 90 + i};
    one.constrain = i % 3 == 0 ? Constrain::kNone : Constrain::kGrammar;
    if (one.constrain == Constrain::kGrammar && i % 4 != 0) {
      one.calls.min_calls = i % 2;
      one.grounding = i % 5 == 1 ? Grounding::kAuto : Grounding::kOff;
    }
    one.detail = i % 6 == 5 ? StepDetail::kTrace : StepDetail::kNone;
    one.n_best = i % 10 == 4 ? 2 : 0;
    mix.push_back(std::move(one));
  }
  return mix;
}

void expect_same(const CallResult& got, const CallResult& expected, std::size_t index) {
  SCOPED_TRACE(index);
  EXPECT_EQ(got.ids, expected.ids);
  EXPECT_EQ(got.text, expected.text);
  EXPECT_EQ(got.prompt_ids, expected.prompt_ids);
  EXPECT_EQ(got.stop, expected.stop);
  EXPECT_EQ(got.forced_tokens, expected.forced_tokens);
  ASSERT_EQ(got.steps.size(), expected.steps.size());
  for (std::size_t i = 0; i < got.steps.size(); ++i) {
    EXPECT_EQ(got.steps[i].log_probability, expected.steps[i].log_probability);
    EXPECT_EQ(got.steps[i].outside, expected.steps[i].outside);
  }
  ASSERT_EQ(got.n_best.size(), expected.n_best.size());
  for (std::size_t i = 0; i < got.n_best.size(); ++i) {
    EXPECT_EQ(got.n_best[i].text, expected.n_best[i].text);
    EXPECT_EQ(got.n_best[i].probability, expected.n_best[i].probability);
  }
}

TEST_F(LoadedModelTest, ABatchAnswersWhatEachWouldBeAnsweredAlone) {
  const std::vector<CallRequest> mix = mixed_requests();
  std::vector<CallResult> alone;
  for (const CallRequest& one : mix) {
    alone.push_back(LoadedModel::load(file_).call(one));
  }
  EXPECT_NE(alone[3].text, alone[6].text) << "all answers are alike";
  for (const Numerics numerics : {Numerics::kMixed, Numerics::kFloat}) {
    for (const std::size_t threads : {1, 2, 3}) {
      const LoadedModel model =
          LoadedModel::load(file_, {.threads = threads, .numerics = numerics});
      for (const std::size_t count : {1, 2, 5, 30}) {
        const std::size_t first = count == 30 ? 0 : count * 3;
        const auto results = model.call_batch(std::span(mix).subspan(first, count));
        ASSERT_EQ(results.size(), count);
        for (std::size_t i = 0; i < count; ++i) {
          expect_same(results[i],
                      numerics == Numerics::kMixed ? alone[first + i] : model.call(mix[first + i]),
                      first + i);
        }
      }
    }
  }
}

TEST_F(LoadedModelTest, OneOfABatchStopsAndTheOthersGoOn) {
  const LoadedModel model = LoadedModel::load(file_);
  std::vector<CallRequest> batch(5, request("WAKE ME", Constrain::kNone));
  const CallResult whole = model.call(batch[0]);
  std::vector<std::string> streamed(batch.size());
  for (std::size_t i = 0; i < batch.size(); ++i) {
    batch[i].on_text = [&streamed, i](std::string_view text) {
      streamed[i] += text;
      return i != 1 || streamed[i].size() < 10;
    };
  }
  int asked = 0;
  batch[2].cancelled = [] { return true; };  // before its prompt
  batch[3].cancelled = [&] { return ++asked > 20; };
  const auto results = model.call_batch(batch);
  for (const std::size_t i : {0, 4}) {
    EXPECT_EQ(results[i].text, whole.text);
    EXPECT_EQ(streamed[i], whole.raw_text);
  }
  for (const std::size_t i : {1, 2, 3}) {
    EXPECT_EQ(results[i].stop, StopReason::kCancelled);
    EXPECT_LT(results[i].ids.size(), whole.ids.size());
    EXPECT_TRUE(whole.raw_text.starts_with(streamed[i])) << i;
  }
  EXPECT_EQ(results[2].ids.size(), 0u);
  EXPECT_GT(results[3].ids.size(), 5u);
  EXPECT_EQ(asked, 21);
  batch[4].on_text = [](std::string_view) -> bool { throw std::runtime_error("mine"); };
  EXPECT_THROW(model.call_batch(batch), std::runtime_error);
  EXPECT_EQ(model.call(request("WAKE ME", Constrain::kNone)).text, whole.text);
}

// Allocations between the first piece of text and the last.
long allocations_while_streaming(const LoadedModel& model, CallRequest request) {
  long first = -1;
  long last = -1;
  request.on_text = [&](std::string_view) {
    last = test::allocation_count();
    first = first < 0 ? last : first;
    return true;
  };
  const CallResult result = model.call(request);
  EXPECT_GT(result.ids.size(), 20u);
  EXPECT_GE(first, 0);
  return last - first;
}

TEST_F(LoadedModelTest, TokensAllocateNothingThroughTheWholeLoop) {
  for (const std::size_t threads : {1, 2}) {
    const LoadedModel model = LoadedModel::load(file_, {.threads = threads});
    EXPECT_EQ(allocations_while_streaming(model, request("WAKE ME", Constrain::kNone)), 0)
        << threads;
    CallRequest stoppable = request("WAKE ME", Constrain::kNone);
    stoppable.cancelled = [] { return false; };
    EXPECT_EQ(allocations_while_streaming(model, stoppable), 0) << threads;
  }
}

// The first answer fills what the grammar keeps, too: the spelling of forced texts.
TEST_F(LoadedModelTest, TokensOfAGrammarAllocateNothingFromTheFirstAnswerOn) {
  const std::string nested = R"([{"name": "ADD", "parameters": {"type": "object", "properties":
      {"ITEMS": {"type": "array", "minItems": 2, "items": {"type": "object", "properties":
      {"N": {"type": "number"}, "KIND": {"type": "string", "enum": ["BIG", "SMALL"]}},
      "required": ["N", "KIND"]}}}, "required": ["ITEMS"]}}])";
  for (const std::size_t threads : {1, 2}) {
    const LoadedModel model = LoadedModel::load(file_, {.threads = threads});
    for (const std::string& tools : {std::string(kTools), nested}) {
      CallRequest call = request("WAKE ME");
      call.tools_json = tools;
      call.calls.min_calls = 1;
      EXPECT_EQ(allocations_while_streaming(model, call), 0) << threads << tools;
      EXPECT_EQ(allocations_while_streaming(model, call), 0) << threads << tools;
      call.grounding = Grounding::kAuto;
      call.query = "WAKE ME AT SEVEN Or Eight On 3 days \u00e9\u00e8 \"BIG\" and 25";
      EXPECT_EQ(allocations_while_streaming(model, call), 0) << threads << " grounded " << tools;
    }
    for (const char* schema :
         {R"({"type": "string", "pattern": "^[A-Z]{20,60}[0-9]+$"})",
          R"({"type": "array", "minItems": 3, "items": {"type": "string", "format": "date-time"}})",
          R"({"type": "object", "required": ["A"], "properties": {"A": {"type": "array",
              "minItems": 9, "items": {"anyOf": [{"type": "number"}, {"type": "string"},
              {"enum": ["ONE", "TWO"]}]}}}})"}) {
      CallRequest call = request("WAKE ME");
      call.response_schema = schema;
      EXPECT_EQ(allocations_while_streaming(model, call), 0) << threads << schema;
    }
  }
}

TEST_F(LoadedModelTest, AllocationsOfCallbacksAreCounted) {
  const LoadedModel model = LoadedModel::load(file_);
  CallRequest call = request("WAKE ME");
  call.calls.min_calls = 1;
  std::vector<std::unique_ptr<int>> kept;
  call.cancelled = [&] { return kept.emplace_back(new int(0)) == nullptr; };
  EXPECT_GT(allocations_while_streaming(model, call), 0);
}

#if defined(__linux__)
TEST_F(LoadedModelTest, AThreadPoolWorksOnOneCore) {
  const std::string expected = LoadedModel::load(file_).call(request("WAKE ME")).text;
  cpu_set_t before;
  CPU_ZERO(&before);
  ASSERT_EQ(::sched_getaffinity(0, sizeof before, &before), 0);
  int core = 0;
  while (!CPU_ISSET(core, &before)) {
    ++core;
  }
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  ASSERT_EQ(::sched_setaffinity(0, sizeof one, &one), 0);
  {
    const LoadedModel model = LoadedModel::load(file_, {.threads = 3});  // workers inherit the core
    EXPECT_EQ(model.call(request("WAKE ME")).text, expected);
    EXPECT_EQ(model.call(request("WAKE ME")).text, expected);
    const LoadedModel all = LoadedModel::load(file_, {.threads = 0});
    EXPECT_EQ(all.call(request("WAKE ME")).text, expected);
  }
  ::sched_setaffinity(0, sizeof before, &before);
}
#endif

TEST_F(LoadedModelTest, PromptsBeyondEveryLimitAreCutOrRefused) {
  const LoadedModel model = LoadedModel::load(file_);
  const CallResult cut = model.call(request(std::string(5000, 'A')));
  EXPECT_GT(cut.cut_query_tokens, 0);
  EXPECT_LE(std::ssize(cut.prompt_ids), model.prompt_config().max_enc_len);
  const std::vector<TokenId> endless((std::size_t{1} << 20) + 1, 6);
  EXPECT_THROW(model.engine().start(endless, 1), Error);
  EXPECT_THROW(model.engine().start(std::vector<TokenId>{6}, std::int64_t{1} << 40), Error);
}

}  // namespace
}  // namespace needle::runtime
