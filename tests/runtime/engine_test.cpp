#include "needle/runtime/engine.h"

#include <algorithm>
#include <cmath>

#ifdef __GLIBC__
#include <malloc.h>
#endif

#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/random.h"
#include "needle/runtime/aligned_buffer.h"

#include "tests/runtime/allocation_counter.h"
#include "tests/runtime/golden_model.h"

namespace needle::runtime {
namespace {

const ModelConfig kConfig{.vocab_size = 70,
                          .d_model = 48,
                          .num_heads = 4,
                          .num_kv_heads = 2,
                          .num_encoder_layers = 2,
                          .num_decoder_layers = 2,
                          .d_ff = 40,
                          .activation = Activation::kSwiglu,
                          .no_feedforward = false,
                          .max_seq_len = 64,
                          .contrastive_dim = 10};

std::map<std::string, std::vector<float>> random_parameters(const ModelConfig& config) {
  std::map<std::string, std::vector<float>> parameters;
  Random random(31);
  for (const TensorSpec& spec : expected_tensors(config)) {
    std::int64_t count = 1;
    for (const std::int64_t side : spec.shape) {
      count *= side;
    }
    std::vector<float> values(static_cast<std::size_t>(count));
    for (float& value : values) {
      value = static_cast<float>(0.3 * random.normal());
    }
    parameters.emplace(spec.name, std::move(values));
  }
  return parameters;
}

constexpr Numerics kAllNumerics[] = {Numerics::kFloat, Numerics::kInt8, Numerics::kInt16,
                                     Numerics::kMixed};

std::shared_ptr<const Model> random_model(WeightEncoding encoding) {
  return test::runtime_model(kConfig, random_parameters(kConfig), encoding);
}

// Heads of 16 dimensions: they are dealt out to threads, and attention over the prompt is in
// integers.
std::shared_ptr<const Model> model_of_wide_heads(Numerics numerics) {
  ModelConfig config = kConfig;
  config.d_model = 64;
  config.num_encoder_layers = 4;  // with Numerics::kMixed the two in the middle differ
  return test::runtime_model(config, random_parameters(config), WeightEncoding::kInt4, numerics);
}

std::vector<TokenId> prompt_of(std::size_t count) {
  Random random(count);
  std::vector<TokenId> prompt(count);
  for (TokenId& token : prompt) {
    token = static_cast<TokenId>(1 + random.below(69));
  }
  return prompt;
}

// Logits of every step, one after the other.
std::vector<float> run(const RuntimeEngine& engine, const std::vector<TokenId>& prompt,
                       const std::vector<TokenId>& answer) {
  const auto session = engine.start(prompt, std::ssize(answer));
  std::vector<float> all;
  for (const TokenId token : answer) {
    const auto logits = session->step(token);
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

float largest_difference(const std::vector<float>& a, const std::vector<float>& b) {
  float largest = 0;
  for (std::size_t i = 0; i < a.size(); ++i) {
    largest = std::max(largest, std::abs(a[i] - b[i]));
  }
  return a.size() == b.size() ? largest : 1e9f;
}

TEST(RuntimeEngineTest, EveryKernelTableGivesTheSameModel) {
  for (const WeightEncoding encoding :
       {WeightEncoding::kF32, WeightEncoding::kInt8, WeightEncoding::kInt4}) {
    const auto model = random_model(encoding);
    const RuntimeEngine scalar(model, {.kernels = &kScalarKernels});
    const auto prompt = prompt_of(37);
    const auto answer = prompt_of(19);
    const auto expected = run(scalar, prompt, answer);
    for (const char* name : {"generic", "avx2", "avx512"}) {
      const Kernels* kernels = nullptr;
      try {
        kernels = &find_kernels(name);
      } catch (const ConfigError&) {
        continue;
      }
      const RuntimeEngine engine(model, {.kernels = kernels});
      EXPECT_LT(largest_difference(run(engine, prompt, answer), expected), 2e-5f) << name;
      EXPECT_LT(largest_difference(engine.embed(prompt), scalar.embed(prompt)), 1e-6f) << name;
    }
    EXPECT_GT(largest_difference(run(scalar, prompt_of(38), answer), expected), 0.01f);
  }
}

TEST(RuntimeEngineTest, QuantisedFileIsItsDeployedWeights) {
  const auto parameters = random_parameters(kConfig);
  for (const WeightEncoding encoding : {WeightEncoding::kInt8, WeightEncoding::kInt4}) {
    auto deployed = parameters;
    for (const TensorSpec& spec : expected_tensors(kConfig)) {
      if (spec.is_matrix()) {
        auto& values = deployed.at(spec.name);
        const auto bytes = pack_matrix(encoding, values, spec.shape[0], spec.shape[1]);
        values = unpack_matrix(
            {.encoding = encoding, .rows = spec.shape[0], .cols = spec.shape[1], .bytes = bytes});
      }
    }
    const RuntimeEngine quantised(test::runtime_model(kConfig, parameters, encoding));
    const RuntimeEngine floats(test::runtime_model(kConfig, deployed));
    const auto expected = run(floats, prompt_of(21), prompt_of(8));
    EXPECT_LT(largest_difference(run(quantised, prompt_of(21), prompt_of(8)), expected), 2e-5f);
    const RuntimeEngine original(test::runtime_model(kConfig, parameters));
    EXPECT_GT(largest_difference(run(original, prompt_of(21), prompt_of(8)), expected), 1e-3f);
  }
}

TEST(RuntimeEngineTest, ThreadsDoNotChangeABit) {
  const auto model = random_model(WeightEncoding::kInt4);
  const auto prompt = prompt_of(300);
  const auto answer = prompt_of(12);
  const RuntimeEngine one(model);
  for (const std::size_t threads : {2, 3, 5}) {
    const RuntimeEngine several(model, {.threads = threads});
    EXPECT_EQ(run(several, prompt, answer), run(one, prompt, answer));
    EXPECT_EQ(several.embed(prompt), one.embed(prompt));
  }
}

// A sanitizer's allocator has no such trap.
#if defined(__GLIBC__) && !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
// Caches are not cleared: what a request before left beyond the positions that count must not show.
TEST(RuntimeEngineTest, WhatLiesInUsedMemoryChangesNoBit) {
  std::vector<std::shared_ptr<const Model>> models = {random_model(WeightEncoding::kF32)};
  for (const Numerics numerics : {Numerics::kInt8, Numerics::kInt16, Numerics::kMixed}) {
    models.push_back(model_of_wide_heads(numerics));
  }
  for (const auto& model : models) {
    const RuntimeEngine engine(model);
    const auto expected = run(engine, prompt_of(37), prompt_of(19));
    keep_buffers();
    ::mallopt(M_PERTURB, 0x80);  // new memory is full of 0x7f: floats of 3.4e38
    const AlignedBuffer<float> unset(1000, Contents::kAnything);
    EXPECT_GT(unset.data()[999], 1e38f);  // the trap is set
    const auto used = run(engine, prompt_of(37), prompt_of(19));
    ::mallopt(M_PERTURB, 0);
    keep_buffers(false);
    EXPECT_EQ(used, expected);
  }
}
#endif

TEST(RuntimeEngineTest, StepAllocatesNothing) {
  std::vector<std::shared_ptr<const Model>> models = {random_model(WeightEncoding::kInt4)};
  for (const Numerics numerics : kAllNumerics) {
    models.push_back(model_of_wide_heads(numerics));
  }
  TokenSet wanted(70);
  wanted.insert(40);
  for (const auto& model : models) {
    for (const std::size_t threads : {1, 2}) {
      const RuntimeEngine engine(model, {.threads = threads});
      const auto session = engine.start(prompt_of(30), 20);
      const long before = test::allocation_count();
      for (TokenId token = 1; token < 10; ++token) {
        session->step(token);
      }
      const TokenId several[] = {3, 4, 5, 6, 7, 8};
      session->feed(several, &wanted);
      EXPECT_EQ(test::allocation_count() - before, 0) << threads;
    }
  }
  EXPECT_GT(test::allocation_count(), 0);
}

TEST(RuntimeEngineTest, PaddingInThePromptIsMasked) {
  const RuntimeEngine engine(random_model(WeightEncoding::kF32));
  const auto prompt = prompt_of(11);
  auto with_padding = prompt;
  with_padding.insert(with_padding.end(), 6, TokenId{0});
  const auto answer = prompt_of(5);
  // Sums over more keys, in another order on some instruction sets.
  EXPECT_LT(largest_difference(run(engine, with_padding, answer), run(engine, prompt, answer)),
            6e-6f);
  EXPECT_LT(largest_difference(engine.embed(with_padding), engine.embed(prompt)), 1e-6f);
  const auto nothing = engine.embed({});
  EXPECT_LT(largest_difference(engine.embed(std::vector<TokenId>(7, 0)), nothing), 1e-7f);
  const auto only_padding = run(engine, std::vector<TokenId>(7, 0), answer);
  EXPECT_TRUE(std::ranges::all_of(only_padding, [](float x) { return std::isfinite(x); }));
}

TEST(RuntimeEngineTest, SessionsDoNotDisturbEachOther) {
  const RuntimeEngine engine(random_model(WeightEncoding::kInt8));
  const auto first = engine.start(prompt_of(9), 4);
  const auto second = engine.start(prompt_of(14), 4);
  std::vector<float> interleaved;
  for (TokenId token = 3; token < 7; ++token) {
    const auto logits = first->step(token);
    interleaved.insert(interleaved.end(), logits.begin(), logits.end());
    second->step(token + 1);
  }
  EXPECT_EQ(first->position(), 4);
  EXPECT_EQ(interleaved, run(engine, prompt_of(9), {3, 4, 5, 6}));
}

// Seven sessions with prompts of their own, in passes of any mix: the bits of each alone.
TEST(RuntimeEngineTest, SessionsFedTogetherGiveTheBitsOfEachAlone) {
  constexpr std::size_t kSessions = 7;
  TokenSet wanted(70);
  wanted.insert(17);
  for (const Numerics numerics : kAllNumerics) {
    const auto model = model_of_wide_heads(numerics);
    for (const std::size_t threads : {1, 2}) {
      const RuntimeEngine engine(model, {.threads = threads});
      std::vector<std::unique_ptr<EngineSession>> sessions;
      std::vector<std::vector<float>> alone;
      std::vector<std::vector<TokenId>> answers;
      for (std::size_t i = 0; i < kSessions; ++i) {
        answers.push_back(prompt_of(13 + i));
        alone.push_back(run(RuntimeEngine(model), prompt_of(5 * i + 3), answers[i]));
        sessions.push_back(engine.start(prompt_of(5 * i + 3), std::ssize(answers[i])));
      }
      Random random(threads);
      for (int pass = 0; pass < 12; ++pass) {
        std::vector<SessionFeed> feeds;
        for (std::size_t i = 0; i < kSessions; ++i) {
          const auto position = static_cast<std::size_t>(sessions[i]->position());
          const std::size_t count =
              std::min<std::size_t>(random.below(8), answers[i].size() - position);
          if (count > 0) {
            feeds.push_back({.session = sessions[i].get(),
                             .tokens = std::span(answers[i]).subspan(position, count),
                             .wanted = i == 2 ? &wanted : nullptr});
          }
        }
        engine.feed(feeds);
        for (const SessionFeed& one : feeds) {
          const auto i = static_cast<std::size_t>(
              std::ranges::find(sessions, one.session, &std::unique_ptr<EngineSession>::get) -
              sessions.begin());
          const auto expected = std::span(alone[i]).subspan(
              static_cast<std::size_t>(one.session->position() - 1) * 70, 70);
          EXPECT_EQ(one.logits[17], expected[17]);
          EXPECT_TRUE(i == 2 || std::ranges::equal(one.logits, expected)) << i << ' ' << pass;
        }
      }
      EXPECT_EQ(sessions[0]->position(), 13);
    }
  }
}

TEST(RuntimeEngineTest, FeedingSessionsTogetherAllocatesNothingAndRefusesMisuse) {
  const auto model = random_model(WeightEncoding::kInt4);
  const RuntimeEngine engine(model, {.threads = 2});
  const auto first = engine.start(prompt_of(9), 40);
  const auto second = engine.start(prompt_of(30), 40);
  const TokenId tokens[] = {3, 4, 5, 6, 7, 8};
  SessionFeed feeds[] = {{.session = first.get(), .tokens = tokens},
                         {.session = second.get(), .tokens = std::span(tokens).first(1)}};
  engine.feed(feeds);
  const long before = test::allocation_count();
  engine.feed(feeds);
  EXPECT_EQ(test::allocation_count() - before, 0);
  EXPECT_EQ(first->position(), 12);
  EXPECT_EQ(second->position(), 2);
  const RuntimeEngine another(random_model(WeightEncoding::kInt4));
  EXPECT_THROW(another.feed(feeds), Error);
  feeds[1].session = first.get();
  EXPECT_THROW(engine.feed(feeds), Error);
  const TokenId outside[] = {70};
  feeds[1] = {.session = second.get(), .tokens = outside};
  EXPECT_THROW(engine.feed(feeds), Error);
  EXPECT_EQ(first->position(), 12);
  engine.feed({});
}

TEST(RuntimeEngineTest, FeedsSeveralTokensAndForgetsThem) {
  const RuntimeEngine engine(random_model(WeightEncoding::kInt4));
  const auto prompt = prompt_of(9);
  const auto steps = run(engine, prompt, {3, 4, 5, 6});
  const std::vector<float> last(steps.end() - 70, steps.end());
  const auto session = engine.start(prompt, 4);
  session->feed(std::vector<TokenId>{3, 9, 8}, nullptr);
  EXPECT_EQ(session->position(), 3);
  session->rewind(1);
  EXPECT_EQ(session->position(), 1);
  const auto logits = session->feed(std::vector<TokenId>{4, 5, 6}, nullptr);
  EXPECT_EQ((std::vector<float>{logits.begin(), logits.end()}), last);
  EXPECT_THROW(session->rewind(5), Error);
  EXPECT_THROW(session->rewind(-1), Error);
  EXPECT_THROW(session->feed({}, nullptr), Error);
}

TEST(RuntimeEngineTest, TokensFedTogetherGiveTheBitsOfSingleSteps) {
  const auto prompt = prompt_of(40);
  const auto answer = prompt_of(61);  // of several passes
  for (const Numerics numerics : kAllNumerics) {
    const auto model = model_of_wide_heads(numerics);
    const auto steps = run(RuntimeEngine(model), prompt, answer);
    for (const std::size_t threads : {1, 2, 3}) {
      const RuntimeEngine engine(model, {.threads = threads});
      const auto session = engine.start(prompt, 61);
      std::size_t fed = 0;
      for (const std::size_t count : {1, 2, 5, 7, 33, 13}) {
        const auto logits = session->feed(std::span(answer).subspan(fed, count), nullptr);
        fed += count;
        const auto expected = std::span(steps).subspan((fed - 1) * 70, 70);
        EXPECT_TRUE(std::ranges::equal(logits, expected)) << count << " on " << threads;
      }
      EXPECT_EQ(session->position(), 61);
    }
  }
}

TEST(RuntimeEngineTest, WantedLogitsHaveTheBitsOfAll) {
  for (const Numerics numerics : kAllNumerics) {
    const auto model = model_of_wide_heads(numerics);
    const auto all = run(RuntimeEngine(model), prompt_of(9), {3});
    for (const std::vector<TokenId>& ids : std::vector<std::vector<TokenId>>{
             {0}, {69}, {15, 16}, {5, 64, 65}, {1, 20, 40, 66}, {17, 30, 31, 33}}) {
      TokenSet wanted(70);
      std::ranges::for_each(ids, [&](TokenId id) { wanted.insert(id); });
      for (const std::size_t threads : {1, 2, 3}) {
        const RuntimeEngine engine(model, {.threads = threads});
        const auto session = engine.start(prompt_of(9), 1);
        const auto some = session->feed(std::vector<TokenId>{3}, &wanted);
        for (const TokenId id : ids) {
          const auto i = static_cast<std::size_t>(id);
          EXPECT_EQ(some[i], all[i]) << id << " on " << threads;
        }
        // What lies in no wanted block has not been computed.
        EXPECT_EQ(some[50], 0.0f);
      }
    }
    const RuntimeEngine engine(model);
    const TokenSet of_another(71);
    EXPECT_THROW(engine.start(prompt_of(9), 1)->feed(std::vector<TokenId>{3}, &of_another), Error);
  }
}

TEST(RuntimeEngineTest, IntegersStayNearTheFloatsWhateverTheThreads) {
  ModelConfig config = kConfig;
  config.d_model = 64;  // heads of 16 dimensions
  config.num_encoder_layers = 1;
  config.num_decoder_layers = 1;
  const auto parameters = random_parameters(config);
  const auto model = [&](Numerics numerics) {
    return test::runtime_model(config, parameters, WeightEncoding::kInt4, numerics);
  };
  std::vector<TokenId> prompt = prompt_of(131);
  prompt[7] = 0;  // padding
  const std::vector<TokenId> answer = {3, 4, 5, 6};
  const auto expected = run(RuntimeEngine(model(Numerics::kFloat)), prompt, answer);
  const auto integers = model(Numerics::kInt8);
  const auto got = run(RuntimeEngine(integers), prompt, answer);
  const auto wider = model(Numerics::kInt16);
  const auto nearer = run(RuntimeEngine(wider), prompt, answer);
  float magnitude = 0;
  for (const float value : expected) {
    magnitude = std::max(magnitude, std::abs(value));
  }
  EXPECT_LT(largest_difference(got, expected), 0.05f * magnitude);
  EXPECT_GT(largest_difference(got, expected), 1e-5f * magnitude) << "these are no integers";
  // What is left is what attention in 12 bits does.
  EXPECT_LT(largest_difference(nearer, expected), 0.2f * largest_difference(got, expected));
  for (const std::size_t threads : {2, 3, 5}) {
    EXPECT_EQ(run(RuntimeEngine(integers, {.threads = threads}), prompt, answer), got) << threads;
    EXPECT_EQ(run(RuntimeEngine(wider, {.threads = threads}), prompt, answer), nearer) << threads;
  }
}

// 16 bits but for the layers between the encoder's first and its last.
TEST(RuntimeEngineTest, MixedIsInt16ButForTheMiddleOfTheEncoder) {
  ModelConfig config = kConfig;
  config.d_model = 64;
  const auto prompt = prompt_of(57);
  const std::vector<TokenId> answer = {3, 4, 5, 6};
  for (const std::int64_t layers : {1, 2, 3, 5}) {
    SCOPED_TRACE(layers);
    config.num_encoder_layers = layers;
    const auto parameters = random_parameters(config);
    const auto engine = [&](Numerics numerics, std::size_t threads = 1) {
      return RuntimeEngine(test::runtime_model(config, parameters, WeightEncoding::kInt4, numerics),
                           {.threads = threads});
    };
    const auto exact = run(engine(Numerics::kFloat), prompt, answer);
    const auto narrow = run(engine(Numerics::kInt8), prompt, answer);
    const auto wide = run(engine(Numerics::kInt16), prompt, answer);
    const auto mixed = run(engine(Numerics::kMixed), prompt, answer);
    EXPECT_EQ(mixed == wide, layers <= 2) << "only the first and the last layer are wide";
    EXPECT_LT(largest_difference(mixed, exact), largest_difference(narrow, exact));
    EXPECT_EQ(engine(Numerics::kMixed).embed(prompt) == engine(Numerics::kInt16).embed(prompt),
              layers <= 2);
    EXPECT_NE(engine(Numerics::kMixed).embed(prompt), engine(Numerics::kInt8).embed(prompt));
    for (const std::size_t threads : {2, 3, 5}) {
      EXPECT_EQ(run(engine(Numerics::kMixed, threads), prompt, answer), mixed) << threads;
    }
  }
}

TEST(RuntimeEngineTest, MisuseThrowsAndLeavesTheSessionUsable) {
  const RuntimeEngine engine(random_model(WeightEncoding::kInt4));
  EXPECT_EQ(engine.vocab_size(), 70);
  EXPECT_THROW(engine.start({}, 4), Error);
  EXPECT_THROW(engine.start(std::vector<TokenId>{1, 70}, 4), Error);
  EXPECT_THROW(engine.start(std::vector<TokenId>{-1}, 4), Error);
  EXPECT_THROW(engine.start(std::vector<TokenId>{1}, -1), Error);
  EXPECT_THROW(engine.embed(std::vector<TokenId>{71}), Error);
  EXPECT_THROW(engine.encode({}), Error);
  const auto session = engine.start(prompt_of(5), 2);
  EXPECT_THROW(session->step(70), Error);
  EXPECT_EQ(session->position(), 0);
  session->step(1);
  session->step(2);
  EXPECT_THROW(session->step(3), Error);
}

}  // namespace
}  // namespace needle::runtime
