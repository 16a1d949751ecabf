// Without a GPU: flash attention's operators are stood in for by a loop over their sequences, so
// that what they are handed, and what is made of it, is tested; the kernels themselves are not.
#include "needle/model/segment_attention.h"

#include <cmath>
#include <future>
#include <limits>
#include <optional>
#include <tuple>
#include <vector>

#include <gtest/gtest.h>

#include <torch/library.h>

#include "needle/model/mask.h"

#include "tests/model/model_fixtures.h"
#include "tests/model/row_fixtures.h"

namespace needle::test {
namespace {

int forwards = 0, backwards = 0;

// q [total, H, D]; each sequence alone. Sequences without keys give zeros, as the kernel's do.
torch::Tensor each_sequence(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                            const torch::Tensor& starts_q, const torch::Tensor& starts_k,
                            std::int64_t most_q, std::int64_t most_k, bool causal) {
  EXPECT_EQ(starts_q.scalar_type(), torch::kInt32);
  EXPECT_EQ(starts_k.scalar_type(), torch::kInt32);
  EXPECT_EQ(starts_q[-1].item<int>(), q.size(0));
  EXPECT_EQ(starts_k[-1].item<int>(), k.size(0));
  std::vector<torch::Tensor> parts;
  for (std::int64_t i = 0; i + 1 < starts_q.size(0); ++i) {
    const int q0 = starts_q[i].item<int>(), q1 = starts_q[i + 1].item<int>();
    const int k0 = starts_k[i].item<int>(), k1 = starts_k[i + 1].item<int>();
    EXPECT_LE(q0, q1);
    EXPECT_LE(q1 - q0, most_q);
    EXPECT_LE(k1 - k0, most_k);
    const auto of = [](const torch::Tensor& x, int from, int to) {
      return x.slice(0, from, to).transpose(0, 1).unsqueeze(0);  // [1, heads, length, D]
    };
    if (k0 == k1) {
      parts.push_back(torch::zeros_like(q.slice(0, q0, q1)));
    } else if (q0 < q1) {
      parts.push_back(at::scaled_dot_product_attention(of(q, q0, q1), of(k, k0, k1), of(v, k0, k1),
                                                       {}, 0.0, causal, {}, /*enable_gqa=*/true)
                          .squeeze(0)
                          .transpose(0, 1));
    }
  }
  return torch::cat(parts);
}

using Five = std::tuple<at::Tensor, at::Tensor, at::Tensor, at::Tensor, at::Tensor>;

Five forward_stand_in(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                      const std::optional<at::Tensor>& starts_q,
                      const std::optional<at::Tensor>& starts_k, c10::SymInt most_q,
                      c10::SymInt most_k, double dropout, bool causal, bool debug,
                      std::optional<double> scale, std::optional<c10::SymInt> /*left*/,
                      std::optional<c10::SymInt> /*right*/, const std::optional<at::Tensor>&,
                      const std::optional<at::Tensor>&, const std::optional<at::Tensor>&,
                      std::optional<std::int64_t>) {
  EXPECT_EQ(dropout, 0.0);
  EXPECT_FALSE(debug || scale.has_value());
  ++forwards;
  const torch::NoGradGuard no_grad;
  const auto out = each_sequence(q, k, v, *starts_q, *starts_k, most_q.expect_int(),
                                 most_k.expect_int(), causal);
  const auto none = torch::zeros({0});
  return {out, none, none, none, none};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> backward_stand_in(
    const at::Tensor& grad, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
    const at::Tensor& /*out*/, const at::Tensor& /*logsumexp*/, const at::Tensor& starts_q,
    const at::Tensor& starts_k, c10::SymInt most_q, c10::SymInt most_k, double /*dropout*/,
    bool causal, const at::Tensor& /*state*/, const at::Tensor& /*unused*/, std::optional<double>,
    std::optional<c10::SymInt>, std::optional<c10::SymInt>) {
  ++backwards;
  const auto leaf = [](const at::Tensor& x) { return x.detach().clone().requires_grad_(); };
  // A kernel runs below autograd; another thread stands above it.
  const auto gradients = std::async(std::launch::async, [&] {
                           const auto a = leaf(q), b = leaf(k), c = leaf(v);
                           const auto out =
                               each_sequence(a, b, c, starts_q, starts_k, most_q.expect_int(),
                                             most_k.expect_int(), causal);
                           return torch::autograd::grad({out}, {a, b, c}, {grad}, {}, {}, true);
                         }).get();
  const auto or_zeros = [](const at::Tensor& gradient, const at::Tensor& like) {
    return gradient.defined() ? gradient : torch::zeros_like(like);
  };
  return {or_zeros(gradients[0], q), or_zeros(gradients[1], k), or_zeros(gradients[2], v)};
}

// Registered for the life of the object: elsewhere the CPU has no such kernel.
struct StandIns {
  torch::Library library{torch::Library::IMPL, "aten", c10::DispatchKey::CPU, __FILE__, __LINE__};
  StandIns() {
    library.impl("_flash_attention_forward", &forward_stand_in);
    library.impl("_flash_attention_backward", &backward_stand_in);
  }
};

struct Attended {
  torch::Tensor out, q, k, v;  // and the gradients
};

template <typename Attend>
Attended pass(std::int64_t B, std::int64_t T, std::int64_t S, const Attend& attend) {
  torch::manual_seed(11);
  auto q = torch::randn({B, 4, T, 8}).requires_grad_();
  auto k = torch::randn({B, 2, S, 8}).requires_grad_();
  auto v = torch::randn({B, 2, S, 8}).requires_grad_();
  const auto out = attend(q, k, v);
  (out * torch::randn(out.sizes())).sum().backward();
  return {out.detach(), q.grad(), k.grad(), v.grad()};
}

torch::Tensor masked(const torch::Tensor& q, const torch::Tensor& k, const torch::Tensor& v,
                     const torch::Tensor& allowed) {
  const auto wide = [](const torch::Tensor& x) { return x.repeat_interleave(2, 1); };
  const auto scores = (q.matmul(wide(k).transpose(-2, -1)) / std::sqrt(8.0))
                          .masked_fill(allowed.logical_not(), std::numeric_limits<float>::lowest());
  return torch::softmax(scores, -1).matmul(wide(v));
}

TEST(SegmentAttentionTest, SequencesLieOneBehindTheOther) {
  const auto queries = torch::tensor({{1, 1, 3, 0}, {1, 2, 2, 2}}, torch::kInt64);
  const auto keys = torch::tensor({{1, 2, 2}, {2, 0, 0}}, torch::kInt64);
  const SegmentOffsets offsets = segment_offsets(queries, keys, 4, false);
  EXPECT_TRUE(torch::equal(offsets.queries,
                           torch::tensor({0, 2, 2, 3, 3, 4, 5, 8, 8, 8, 8}, torch::kInt32)));
  EXPECT_TRUE(
      torch::equal(offsets.keys, torch::tensor({0, 1, 3, 3, 3, 3, 3, 4, 4, 4, 6}, torch::kInt32)));
  EXPECT_TRUE(torch::equal(offsets.no_key.flatten(1),
                           torch::tensor({{0, 0, 1, 1}, {1, 0, 0, 0}}, torch::kBool)));
}

TEST(SegmentAttentionTest, GivesWhatTheMaskGives) {
  const StandIns kernels;
  const auto input = packed_input(small_config());
  struct Case {
    torch::Tensor queries, keys;
    bool causal;
  };
  for (const auto& [queries, keys, causal] :
       {Case{input.source_segments, input.source_segments, false},
        Case{input.decoder_segments, input.decoder_segments, true},
        Case{input.decoder_segments, input.source_segments, false}}) {
    const auto T = queries.size(1), S = keys.size(1);
    const auto allowed = causal
                             ? segment_mask(queries, keys).logical_and(causal_mask(T, torch::kCPU))
                             : segment_mask(queries, keys);
    const auto offsets = segment_offsets(queries, keys, 8, causal);
    const Attended mask = pass(2, T, S, [&](const auto& q, const auto& k, const auto& v) {
      return masked(q, k, v, allowed);
    });
    const Attended flash = pass(2, T, S, [&](const auto& q, const auto& k, const auto& v) {
      return segment_attention(q, k, v, offsets);
    });
    EXPECT_LT(largest_difference(flash.out, mask.out), 1e-5);
    EXPECT_LT(largest_difference(flash.q, mask.q), 1e-5);
    EXPECT_LT(largest_difference(flash.k, mask.k), 1e-5);
    EXPECT_LT(largest_difference(flash.v, mask.v), 1e-5);
    EXPECT_GT(mask.v.abs().max().item<float>(), 0.1F);
  }
}

TEST(SegmentAttentionTest, TheModelTakesItWhereTheDeviceHasIt) {
  const ModelConfig config = small_config();
  Needle model = random_model(config, 1);
  ModelInput input = packed_input(config);
  input.most_segments = 8;
  const Pass wanted = run(model, input, AttentionKernel::kExact);
  model->set_compute_dtype(torch::kBFloat16);
  const Pass exact = run(model, input, AttentionKernel::kExact);
  const Pass fused = run(model, input, AttentionKernel::kFused);
  forwards = backwards = 0;
  const Pass without = run(model, input, AttentionKernel::kSegments);
  EXPECT_EQ(forwards, 0);
  EXPECT_EQ(largest_difference(without.hidden, fused.hidden), 0.0);

  const StandIns kernels;
  const Pass segments = run(model, input, AttentionKernel::kSegments);
  const auto attentions = config.num_encoder_layers + 2 * config.num_decoder_layers;
  EXPECT_EQ(forwards, attentions);
  EXPECT_EQ(backwards, attentions);
  const auto error = [&](const Pass& pass) {
    return (pass.hidden.to(torch::kFloat32) - wanted.hidden).norm().item<double>() /
           wanted.hidden.norm().item<double>();
  };
  EXPECT_LT(error(segments), 2.0 * error(exact) + 0.004);  // 0.004: half a step of bfloat16
  EXPECT_LT(gradient_difference(segments, wanted),
            2.0 * gradient_difference(exact, wanted) + 0.004);

  input.most_segments = 0;  // nobody knows: the mask
  forwards = 0;
  run(model, input, AttentionKernel::kSegments);
  EXPECT_EQ(forwards, 0);
}

}  // namespace
}  // namespace needle::test
