#include "needle/train/loss.h"

#include <filesystem>

#include <gtest/gtest.h>

#include "needle/core/enum_names.h"
#include "needle/train/device_batch.h"
#include "needle/train/fake_quant_scope.h"

#include "tests/train/golden_case.h"

namespace needle::test {
namespace {

struct Problem {
  torch::Tensor hidden, embedding, target, weights;
};

// A third of the targets is padding (0).
Problem random_problem(std::int64_t rows, std::int64_t length, std::int64_t vocab,
                       std::uint64_t seed) {
  torch::manual_seed(seed);
  const auto target = torch::randint(1, vocab, {rows, length}) *
                      torch::rand({rows, length}).gt(0.33).to(torch::kInt64);
  return {.hidden = torch::randn({rows, length, 12}).requires_grad_(),
          .embedding = torch::randn({vocab, 12}).requires_grad_(),
          .target = target,
          .weights = torch::rand({rows, length}) + 0.5};
}

// The definition in float64, one target after the other.
double cross_entropy_by_hand(const Problem& p, bool weighted) {
  const auto logits =
      p.hidden.to(torch::kFloat64).matmul(p.embedding.to(torch::kFloat64).t()).flatten(0, 1);
  const auto target = p.target.flatten();
  const auto weights = p.weights.flatten();
  double sum = 0.0;
  std::int64_t tokens = 0;
  for (std::int64_t i = 0; i < target.size(0); ++i) {
    const auto id = target[i].item<std::int64_t>();
    if (id != 0) {
      const double log_p = (logits[i][id] - logits[i].exp().sum().log()).item<double>();
      sum -= (weighted ? weights[i].item<double>() : 1.0) * log_p;
      ++tokens;
    }
  }
  return sum / static_cast<double>(std::max<std::int64_t>(tokens, 1));
}

TEST(TokenLossTest, FollowsTheDefinition) {
  const Problem p = random_problem(3, 7, 23, 1);
  const auto logits = p.hidden.matmul(p.embedding.t());
  const auto weighted = token_loss(logits, p.target, p.weights, {});
  EXPECT_NEAR(weighted.cross_entropy.item<double>(), cross_entropy_by_hand(p, true), 1e-5);
  const auto plain = token_loss(logits, p.target, {}, {});
  EXPECT_NEAR(plain.cross_entropy.item<double>(), cross_entropy_by_hand(p, false), 1e-5);
  EXPECT_GT(std::abs(weighted.cross_entropy.item<double>() - plain.cross_entropy.item<double>()),
            1e-3);
  const double z = 1e-4 * torch::logsumexp(logits, -1).square().mean().item<double>();
  EXPECT_NEAR(weighted.z.item<double>(), z, 1e-8);
  EXPECT_NEAR(weighted.text_loss.item<double>(), weighted.cross_entropy.item<double>() + z, 1e-6);
}

TEST(TokenLossTest, PaddingReachesTheLossThroughZAlone) {
  const auto logits = torch::randn({2, 5, 11});
  const auto nothing = torch::zeros({2, 5}, torch::kInt64);
  const auto loss = token_loss(logits, nothing, {}, {});
  EXPECT_EQ(loss.cross_entropy.item<double>(), 0.0);
  EXPECT_GT(loss.z.item<double>(), 0.0);
  EXPECT_EQ(loss.text_loss.item<double>(), loss.z.item<double>());
}

TEST(TokenLossTest, PartsOfMicroBatchesAddUpToThoseOfTheBatch) {
  const Problem p = random_problem(6, 9, 31, 2);
  const auto logits = p.hidden.matmul(p.embedding.t()).detach();
  const auto whole = token_loss(logits, p.target, p.weights, {});
  const TokenLossOptions options{.tokens = p.target.ne(0).sum().item<std::int64_t>(),
                                 .positions = p.target.numel()};
  double sum = 0.0;
  for (std::int64_t row = 0; row < 6; row += 2) {
    sum += token_loss(logits.narrow(0, row, 2), p.target.narrow(0, row, 2),
                      p.weights.narrow(0, row, 2), options)
               .text_loss.item<double>();
  }
  EXPECT_NEAR(sum, whole.text_loss.item<double>(), 1e-5);
}

TEST(TiedTokenLossTest, EqualsTheLossOfWholeLogitsWithItsGradients) {
  for (const auto& [rows, length, vocab, block] :
       {std::tuple{1, 1, 5, 256}, {3, 7, 23, 4}, {5, 13, 40, 64}, {2, 8, 17, 16}}) {
    SCOPED_TRACE(format("{} x {}, vocabulary {}, blocks of {}", rows, length, vocab, block));
    const Problem p = random_problem(rows, length, vocab, 3);
    const Problem q{.hidden = p.hidden.detach().clone().requires_grad_(),
                    .embedding = p.embedding.detach().clone().requires_grad_(),
                    .target = p.target,
                    .weights = p.weights};
    const auto plain = token_loss(p.hidden.matmul(p.embedding.t()), p.target, p.weights, {});
    const auto tied =
        tied_token_loss(q.hidden, q.embedding, q.target, q.weights, {.block_rows = block});
    // Sums of at most 65 terms of size 30: 1e-5 is 40 roundings of the largest.
    EXPECT_NEAR(tied.cross_entropy.item<double>(), plain.cross_entropy.item<double>(), 1e-5);
    EXPECT_NEAR(tied.z.item<double>(), plain.z.item<double>(), 1e-7);
    EXPECT_NEAR(tied.text_loss.item<double>(), plain.text_loss.item<double>(), 1e-5);
    const auto rounded =
        tied_token_loss(q.hidden.detach(), q.embedding.detach(), q.target, q.weights,
                        {.block_rows = block, .factors = torch::kBFloat16});
    EXPECT_NEAR(rounded.text_loss.item<double>(), plain.text_loss.item<double>(),
                0.02 * plain.text_loss.item<double>());
    EXPECT_NE(rounded.text_loss.item<double>(), tied.text_loss.item<double>());
    (3.0 * plain.text_loss).backward();
    (3.0 * tied.text_loss).backward();
    EXPECT_GT(largest(p.hidden.grad()), 0.0);
    EXPECT_LE(largest(p.hidden.grad() - q.hidden.grad()), 2e-6 * largest(p.hidden.grad()) + 1e-7);
    EXPECT_LE(largest(p.embedding.grad() - q.embedding.grad()),
              2e-6 * largest(p.embedding.grad()) + 1e-7);
  }
}

TEST(TiedTokenLossTest, GivesNoGradientWhenNoneIsWanted) {
  const Problem p = random_problem(2, 3, 9, 4);
  const torch::NoGradGuard no_grad;
  const auto loss = tied_token_loss(p.hidden, p.embedding, p.target, p.weights, {});
  EXPECT_FALSE(loss.text_loss.requires_grad());
  EXPECT_NEAR(loss.cross_entropy.item<double>(), cross_entropy_by_hand(p, true), 1e-5);
}

TEST(TiedTokenLossTest, GradientOfBfloat16StatesIsBfloat16) {
  const Problem p = random_problem(2, 6, 19, 5);
  const auto hidden = p.hidden.detach().to(torch::kBFloat16).requires_grad_();
  const auto loss = tied_token_loss(hidden, p.embedding, p.target, {}, {});
  loss.text_loss.backward();
  EXPECT_EQ(hidden.grad().scalar_type(), torch::kBFloat16);
  EXPECT_EQ(loss.text_loss.scalar_type(), torch::kFloat32);
}

TEST(TiedTokenLossTest, RefusesShapesThatDoNotBelongTogether) {
  const Problem p = random_problem(2, 3, 9, 6);
  EXPECT_THROW(tied_token_loss(p.hidden, p.embedding, p.target.narrow(0, 0, 1), {}, {}), Error);
  EXPECT_THROW(tied_token_loss(p.hidden, p.embedding.narrow(1, 0, 5), p.target, {}, {}), Error);
  EXPECT_THROW(token_loss(p.hidden, p.target, torch::ones({5}), {}), Error);
}

TEST(ContrastiveLossTest, IsZeroForOnePairAndLogOfTheCountForEqualPairs) {
  const auto log_temp = torch::zeros({});
  EXPECT_EQ(contrastive_loss(torch::ones({1, 1}), torch::ones({1, 1}), log_temp).item<double>(),
            0.0);
  const auto same = torch::ones({7, 4}) * 0.5;
  EXPECT_NEAR(contrastive_loss(same, same, log_temp).item<double>(), std::log(7.0), 1e-6);
  EXPECT_THROW(contrastive_loss(same, same.narrow(0, 0, 3), log_temp), Error);
}

// --- the reference's numbers ---

class LossGoldenTest : public ::testing::Test {
 protected:
  void SetUp() override {
    torch::set_num_threads(1);
    report_ = read_json_file(golden("loss/loss.json"));
    batches_ = load_tensors(golden("loss/batches.safetensors"));
    const auto config = golden_config(read_json_file(golden("checkpoint/tiny_config.json")));
    model_ = load_released_safetensors(golden("checkpoint/tiny_f32.safetensors"), config);
    model_->train();
  }

  struct Result {
    LossParts parts;
    torch::Tensor contrastive;
    torch::Tensor total;
  };

  // The name of a case says what it is: post, post_int4_contrastive, pretrain, all_padding.
  Result run(const std::string& name, bool tied) {
    const bool padding = name.find("padding") != std::string::npos;
    const std::string kind = name.starts_with("pretrain") ? "pretrain/" : "post/";
    NamedTensors tensors = under(batches_, kind);
    if (padding) {
      for (auto& [key, tensor] : tensors) {
        tensor = torch::zeros_like(tensor);
      }
    }
    const auto& weights = report_.at("class_weights");
    const ClassWeights classes{weights.at(0), weights.at(1), weights.at(2), weights.at(3)};
    const DeviceBatch batch =
        to_device(golden_batch(tensors), torch::kCPU, model_->config().vocab_size, &classes);
    FakeQuant mode = FakeQuant::kNone;
    if (name.find("int4") != std::string::npos) {
      mode = FakeQuant::kInt4;
    } else if (name.find("int8") != std::string::npos) {
      mode = FakeQuant::kInt8;
    }
    const FakeQuantScope quantized(*model_, mode, FakeQuant::kNone);
    const TokenLossOptions options{.z_loss = report_.at("z_weight"),
                                   .pad_token_id = model_->config().pad_token_id};
    Result result;
    result.parts =
        tied ? tied_token_loss(model_->hidden(batch.input), model_->embedding->weight, batch.target,
                               batch.weights, options)
             : token_loss(model_->forward(batch.input), batch.target, batch.weights, options);
    result.total = result.parts.text_loss;
    if (name.find("contrastive") != std::string::npos) {
      const auto pairs = under(batches_, "contrastive/");
      result.contrastive = contrastive_loss(
          model_->embed(pairs.at("query_tokens").to(torch::kInt64)),
          model_->embed(pairs.at("tool_tokens").to(torch::kInt64)), model_->log_temp);
      result.total =
          result.total + report_.at("contrastive_weight").get<double>() * result.contrastive;
    }
    model_->zero_grad();
    result.total.backward();
    return result;
  }

  static double norm_of(const NamedTensors& gradients) {
    double sum = 0.0;
    for (const auto& [path, gradient] : gradients) {
      sum += gradient.to(torch::kFloat64).square().sum().item<double>();
    }
    return std::sqrt(sum);
  }

  Json report_;
  NamedTensors batches_;
  Needle model_{nullptr};
};

TEST_F(LossGoldenTest, EveryCaseHasTheReferencesLossesAndGradientNorm) {
  ASSERT_FALSE(report_.at("cases").empty());
  for (const bool tied : {false, true}) {
    for (const auto& [name, wanted] : report_.at("cases").items()) {
      SCOPED_TRACE(name + (tied ? ", tied" : ", whole logits"));
      const Result result = run(name, tied);
      const auto check = [&wanted = wanted](const char* key, const torch::Tensor& value) {
        if (wanted.contains(key)) {
          EXPECT_NEAR(value.item<double>(), wanted.at(key).get<double>(), 5e-5) << key;
        }
      };
      check("ce", result.parts.cross_entropy);
      check("z", result.parts.z);
      check("text_loss", result.parts.text_loss);
      check("total", result.total);
      EXPECT_EQ(wanted.contains("contrastive"), result.contrastive.defined());
      if (result.contrastive.defined()) {
        check("contrastive", result.contrastive);
      }
      const double norm = wanted.at("grad_norm");
      const double relative = name.find("padding") == std::string::npos ? 1e-4 : 1e-3;
      EXPECT_NEAR(norm_of(released_gradients(model_)), norm, relative * norm);
    }
  }
}

TEST_F(LossGoldenTest, EveryLeafHasTheReferencesGradientNorm) {
  ASSERT_FALSE(report_.at("grad_leaf_norms").empty());
  for (const auto& [name, leaves] : report_.at("grad_leaf_norms").items()) {
    run(name, /*tied=*/true);
    const auto gradients = released_gradients(model_);
    EXPECT_EQ(leaves.size(), gradients.size()) << name;
    for (const auto& [path, norm] : leaves.items()) {
      const double wanted = norm;
      EXPECT_NEAR(gradients.at(path).norm().item<double>(), wanted, 1e-3 * wanted + 1e-12)
          << name << ": " << path;
    }
  }
}

TEST_F(LossGoldenTest, EveryGradientIsTheReferences) {
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(golden("loss"))) {
    const std::string stem = entry.path().stem().string();
    if (entry.path().extension() != ".safetensors" || !stem.starts_with("grad_")) {
      continue;
    }
    ++files;
    for (const bool tied : {false, true}) {
      run(stem.substr(std::string("grad_").size()), tied);
      expect_close(released_gradients(model_), load_tensors(entry.path()), 1e-4, 1e-7, stem);
    }
  }
  EXPECT_GT(files, 0);
}

TEST_F(LossGoldenTest, ContrastiveLossAndItsTemperatureGradient) {
  const auto pairs = under(batches_, "contrastive/");
  ASSERT_FALSE(report_.at("contrastive_by_log_temp").empty());
  for (const auto& wanted : report_.at("contrastive_by_log_temp")) {
    const double value = wanted.at("log_temp");
    SCOPED_TRACE(value);
    const auto log_temp = torch::tensor(static_cast<float>(value)).requires_grad_();
    const auto loss =
        contrastive_loss(pairs.at("query_embedding"), pairs.at("tool_embedding"), log_temp);
    loss.backward();
    const double expected = wanted.at("loss");
    EXPECT_NEAR(loss.item<double>(), expected, 1e-5 * std::abs(expected));
    const double gradient = wanted.at("grad_log_temp");
    if (std::abs(value) > std::log(100.0)) {
      EXPECT_EQ(log_temp.grad().item<double>(), 0.0);
    } else {
      EXPECT_NEAR(log_temp.grad().item<double>(), gradient, 1e-4 * std::abs(gradient));
    }
  }
}

TEST(FeedForwardGoldenTest, LossAndGradientsOfEveryActivation) {
  torch::set_num_threads(1);
  const auto tensors = load_tensors(golden("forward/feedforward.safetensors"));
  ModelConfig config = golden_config(read_json_file(golden("forward/feedforward_config.json")));
  int cases = 0;
  for (const auto& [activation, name] : kActivationNames.entries) {
    const auto wanted = under(tensors, std::string(name) + "/");
    if (wanted.empty()) {
      continue;
    }
    ++cases;
    SCOPED_TRACE(name);
    config.activation = activation;
    Needle model(config);
    assign_parameters(model, from_released(under(tensors, "params/"), config, "params"), "params");
    model->train();
    const DeviceBatch batch =
        to_device(golden_batch(tensors), torch::kCPU, config.vocab_size, nullptr);
    const auto loss = tied_token_loss(model->hidden(batch.input), model->embedding->weight,
                                      batch.target, {}, {.pad_token_id = config.pad_token_id});
    EXPECT_NEAR(loss.text_loss.item<double>(), wanted.at("loss").item<double>(), 2e-5);
    loss.text_loss.backward();
    expect_close(released_gradients(model), under(wanted, "grad/"), 1e-4, 1e-7, "gradient");
  }
  EXPECT_GT(cases, 0);
}

}  // namespace
}  // namespace needle::test
