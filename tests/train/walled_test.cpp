// The device layer on a device that is not the CPU (walled_device.cpp), loaded as a plug-in.
#include <csignal>
#include <limits>
#include <span>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "needle/core/error.h"
#include "needle/model/checkpoint.h"
#include "needle/model/model_engine.h"
#include "needle/train/device.h"
#include "needle/train/device_plugin.h"
#include "needle/train/train_step.h"

#include "tests/support/program.h"
#include "tests/train/tiny_training.h"
#include "tests/train/walled_device.h"

namespace needle::test {
namespace {

const torch::Device kWalled(torch::DeviceType::PrivateUse1, 0);

std::string plugin_path() {
  const auto programs = built_program("").parent_path();
  return (programs.parent_path() / "plugins/libneedle_walled_device.so").string();
}

class WalledTest : public testing::Test {
 protected:
  // Not for the suite: a failure there would count as a skipped test.
  void SetUp() override {
    static const bool loaded = [] {
      const std::vector<std::string> paths{plugin_path()};
      load_device_plugins(paths);
      torch::set_num_threads(1);
      return true;
    }();
    ASSERT_TRUE(loaded);
  }
  static WalledCounts counts() {
    static const auto read = reinterpret_cast<const WalledCounts* (*)()>(
        dlsym(dlopen(plugin_path().c_str(), RTLD_NOW), "walled_counts"));
    return *read();
  }
};
using WalledDeathTest = WalledTest;

TEST_F(WalledDeathTest, AStrayAccessOfTheCpuEndsTheProcess) {
  const auto tensor = torch::ones({4}, kWalled);
  EXPECT_EXIT((void)*static_cast<const volatile float*>(tensor.const_data_ptr<float>()),
              testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EXIT(*static_cast<volatile float*>(tensor.mutable_data_ptr<float>()) = 2.0F,
              testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EQ(tensor.sum().item<float>(), 4.0F);  // its kernels may
}

TEST_F(WalledTest, IsFoundByNameAndByAuto) {
  EXPECT_EQ(available_devices(), (std::vector<std::string>{"cpu", "walled:0", "walled:1"}));
  EXPECT_EQ(choose_device("walled"), kWalled);
  EXPECT_EQ(choose_device("walled:1"), torch::Device(torch::DeviceType::PrivateUse1, 1));
  EXPECT_EQ(choose_device("auto"), kWalled);
  EXPECT_EQ(choose_device("cpu"), torch::Device(torch::kCPU));
  EXPECT_THROW(choose_device("walled:2"), ConfigError);
  ASSERT_NE(plugin_of(kWalled.type()), nullptr);
  EXPECT_STREQ(plugin_of(kWalled.type())->device, "walled");
  EXPECT_EQ(plugin_of(torch::kCUDA), nullptr);
  EXPECT_EQ(choose_compute_dtype(ComputeDtype::kAuto, kWalled), torch::kFloat32);
}

TEST_F(WalledTest, ItsTwoDevicesAreApart) {
  const torch::Device second(torch::DeviceType::PrivateUse1, 1);
  const auto one = torch::ones({4}, kWalled), other = torch::ones({4}, second);
  EXPECT_EQ(one.device(), kWalled);
  EXPECT_EQ(other.device(), second);
  EXPECT_EQ((other + other).device(), second);
  EXPECT_THROW(one + other, c10::Error);
  EXPECT_EQ(memory_use(second).current_bytes, 4096) << "a page";
  EXPECT_EQ((one + other.to(kWalled)).sum().item<float>(), 8.0F);
}

TEST_F(WalledTest, ReportsItsMemory) {
  const MemoryUse before = memory_use(kWalled);
  const auto tensor = torch::empty({1 << 20}, kWalled);
  const MemoryUse after = memory_use(kWalled);
  EXPECT_EQ(after.current_bytes - before.current_bytes, 4 << 20);
  EXPECT_GE(after.peak_bytes, after.current_bytes);
  EXPECT_EQ(memory_use({kWalled.type(), 1}).current_bytes, 0);
}

TEST_F(WalledTest, SeedsRepeat) {
  seed_generators(7);
  const auto first = torch::rand({8}, kWalled).cpu();
  const auto second = torch::rand({8}, kWalled).cpu();
  seed_generators(7);
  EXPECT_TRUE(torch::equal(torch::rand({8}, kWalled).cpu(), first));
  EXPECT_FALSE(torch::equal(first, second));
}

TEST_F(WalledTest, PinnedCopiesAreNotWaitedFor) {
  const auto staging = empty_staging({3}, torch::kFloat32, kWalled);
  EXPECT_TRUE(staging.is_pinned());
  EXPECT_FALSE(empty_staging({3}, torch::kFloat32, torch::kCPU).is_pinned());
  staging.copy_(torch::tensor({1.0F, 2.0F, 3.0F}));
  const WalledCounts before = counts();
  const auto on_device = copy_to_device(staging, kWalled);
  PendingCopy pending(on_device * 2.0);
  const WalledCounts between = counts();
  EXPECT_EQ(between.copies_in - before.copies_in, 1);
  EXPECT_EQ(between.copies_out - before.copies_out, 1);
  EXPECT_EQ(between.waiting_copies_in + between.waiting_copies_out + between.waits,
            before.waiting_copies_in + before.waiting_copies_out + before.waits);
  EXPECT_TRUE(torch::equal(pending.wait(), torch::tensor({2.0F, 4.0F, 6.0F})));
  EXPECT_EQ(counts().waits - between.waits, 1);
  EXPECT_FALSE(pending.pending());
  EXPECT_THROW(pending.wait(), Error);

  PendingCopy on_host(torch::ones({2}));
  EXPECT_TRUE(torch::equal(on_host.wait(), torch::ones({2})));
}

TEST_F(WalledTest, RecordedWorkIsRepeated) {
  ASSERT_TRUE(DeviceGraph::is_available(kWalled));
  EXPECT_FALSE(DeviceGraph::is_available(torch::kCPU));
  const auto x = torch::ones({2, 2}, kWalled);
  const auto sum = torch::zeros({}, kWalled);
  DeviceGraph graph(kWalled, [&] {
    x.mul_(2.0);
    sum.copy_(x.matmul(x).sum());
  });
  EXPECT_EQ(x.sum().item<float>(), 4.0F);  // recording does nothing
  graph.replay();
  EXPECT_EQ(sum.item<float>(), 32.0F);  // [[2, 2], [2, 2]] squared is 8 everywhere
  graph.replay();
  EXPECT_EQ(sum.item<float>(), 128.0F);
  EXPECT_THROW(DeviceGraph(torch::kCPU, [] {}), Error);
}

TEST_F(WalledTest, WorkThatThrowsEndsItsRecording) {
  const auto x = torch::ones({2}, kWalled);
  EXPECT_THROW(DeviceGraph(kWalled, [&] { (void)x.sum().item<float>(); }), Error);
  EXPECT_THROW(DeviceGraph(kWalled,
                           [&] {
                             x.add_(1.0);
                             throw DataError("not the device's");
                           }),
               DataError);
  EXPECT_EQ(x.sum().item<float>(), 2.0F);  // done at once again, and not what was recorded
  DeviceGraph graph(kWalled, [&] { x.add_(1.0); });
  graph.replay();
  EXPECT_EQ(x.sum().item<float>(), 4.0F);
}

// A model, its optimiser and its step on one device; at full rate from the first update on.
struct Training {
  explicit Training(torch::Device device, double dropout_rate = 0.0,
                    const TrainStepConfig& config = {})
      : model(on(tiny_model(1, dropout_rate), device)),
        optimizer(model,
                  {.adam = {.peak_lr = 3e-3, .weight_decay = 0.1},
                   .schedule = {.final_ratio = 1.0, .decay_steps = 1'000'000}},
                  100),
        step(model, optimizer, config, device, /*seed=*/42) {}

  static Needle on(Needle model, torch::Device device) {
    model->to(device);
    model->set_attention_kernel(AttentionKernel::kFused);
    return model;
  }

  // Steps first .. first + count - 1 and their reports.
  std::vector<StepReport> ahead(std::int64_t first, std::int64_t count,
                                std::span<const Batch> batches) {
    std::vector<StepReport> reports;
    for (std::int64_t i = first; i < first + count; ++i) {
      const auto one = batches.subspan(static_cast<std::size_t>(i) % batches.size(), 1);
      step.run_ahead(i, one);
      if (i > first) {
        reports.push_back(step.finish());
      }
    }
    reports.push_back(step.finish());
    return reports;
  }
  std::vector<StepReport> waiting(std::int64_t first, std::int64_t count,
                                  std::span<const Batch> batches) {
    std::vector<StepReport> reports;
    for (std::int64_t i = first; i < first + count; ++i) {
      reports.push_back(
          step.run(i, batches.subspan(static_cast<std::size_t>(i) % batches.size(), 1)));
    }
    return reports;
  }

  Needle model;
  Optimizer optimizer;
  TrainStep step;
};

// Sums in another order, rates in float32: rounding, which some updates carry on.
void expect_same(const std::vector<StepReport>& a, const std::vector<StepReport>& b) {
  ASSERT_EQ(a.size(), b.size());
  for (std::size_t i = 0; i < a.size(); ++i) {
    EXPECT_EQ(a[i].step, b[i].step);
    EXPECT_EQ(a[i].skipped, b[i].skipped);
    if (!a[i].skipped) {
      EXPECT_NEAR(a[i].loss, b[i].loss, 5e-5 * a[i].loss) << i;
      EXPECT_NEAR(a[i].grad_norm, b[i].grad_norm, 2e-3 * a[i].grad_norm) << i;
    }
    EXPECT_DOUBLE_EQ(a[i].lr_adam, b[i].lr_adam);
    EXPECT_DOUBLE_EQ(a[i].lr_muon, b[i].lr_muon);
    EXPECT_EQ(a[i].target_tokens, b[i].target_tokens);
  }
}

void expect_same(const Training& a, const Training& b) {
  EXPECT_EQ(a.optimizer.updates(), b.optimizer.updates());
  const NamedTensors one = named_parameters(a.model), other = named_parameters(b.model);
  for (const auto& [name, tensor] : one) {
    EXPECT_TRUE(torch::allclose(tensor.cpu(), other.at(name).cpu(), 1e-3, 2e-4)) << name;
  }
  const NamedTensors state = b.optimizer.state_dict();
  for (const auto& [name, tensor] : a.optimizer.state_dict()) {
    if (tensor.scalar_type() == torch::kInt64) {
      EXPECT_TRUE(torch::equal(tensor, state.at(name))) << name;
    } else {
      EXPECT_TRUE(torch::allclose(tensor.cpu(), state.at(name).cpu(), 5e-3, 1e-4)) << name;
    }
  }
}

TEST_F(WalledTest, StepsLearnWhatTheCpuLearns) {
  const std::vector<Batch> batches{tiny_batch(8, 1), tiny_batch(8, 2)};
  Training cpu(torch::kCPU), walled(kWalled), ahead(kWalled);
  EXPECT_FALSE(cpu.step.can_run_ahead());
  const auto expected = cpu.waiting(0, 8, batches);
  expect_same(expected, walled.waiting(0, 8, batches));
  expect_same(cpu, walled);
  expect_same(expected, ahead.ahead(0, 8, batches));
  expect_same(cpu, ahead);
}

TEST_F(WalledTest, NothingIsWaitedForInsideAStep) {
  const std::vector<Batch> batches{tiny_batch(8, 1), tiny_batch(8, 2)};
  Training run(kWalled);
  run.ahead(0, 2, batches);
  const WalledCounts before = counts();
  constexpr std::int64_t kSteps = 5;
  run.ahead(2, kSteps, batches);
  const WalledCounts after = counts();
  EXPECT_EQ(after.copies_in - before.copies_in, kSteps);    // the batch
  EXPECT_EQ(after.copies_out - before.copies_out, kSteps);  // the step's numbers
  EXPECT_EQ(after.waits - before.waits, kSteps);            // for those of the step before
  EXPECT_EQ(after.waiting_copies_in, before.waiting_copies_in);
  EXPECT_EQ(after.waiting_copies_out, before.waiting_copies_out);

  // A step that is read at once waits for its numbers, and for nothing else.
  run.waiting(20, 1, batches);
  const WalledCounts last = counts();
  EXPECT_EQ(last.waiting_copies_out - after.waiting_copies_out, 1);
  EXPECT_EQ(last.waiting_copies_in, after.waiting_copies_in);
}

TEST_F(WalledTest, AStepThatIsNotFiniteChangesNothing) {
  const std::vector<Batch> batches{tiny_batch(8, 1)};
  Training cpu(torch::kCPU), walled(kWalled);
  cpu.waiting(0, 2, batches);
  walled.ahead(0, 2, batches);
  const NamedTensors before = [&] {
    NamedTensors all;
    for (const auto& [name, tensor] : named_parameters(walled.model)) {
      all[name] = tensor.detach().cpu().clone();
    }
    for (const auto& [name, tensor] : walled.optimizer.state_dict()) {
      all["state " + name] = tensor.cpu().clone();
    }
    return all;
  }();
  // One value of the embedding makes the loss infinite, then it is mended: what the device did
  // with that step shows in everything else.
  const auto spoil = [](Training& run, float value) {
    const torch::NoGradGuard no_grad;
    run.model->log_temp.fill_(0.0);
    run.model->decoder->final_norm->scale[0].fill_(value);
  };
  const float good = cpu.model->decoder->final_norm->scale[0].item<float>();
  const float walled_good = walled.model->decoder->final_norm->scale[0].item<float>();
  for (Training* run : {&cpu, &walled}) {
    spoil(*run, std::numeric_limits<float>::infinity());
  }
  const auto expected = cpu.waiting(2, 1, batches);
  const auto found = walled.ahead(2, 1, batches);
  ASSERT_TRUE(expected.front().skipped);
  ASSERT_TRUE(found.front().skipped);
  EXPECT_EQ(found.front().skip_reason, expected.front().skip_reason);
  spoil(cpu, good);
  spoil(walled, walled_good);
  for (const auto& [name, tensor] : named_parameters(walled.model)) {
    EXPECT_TRUE(torch::equal(tensor.detach().cpu(), before.at(name))) << name;
  }
  for (const auto& [name, tensor] : walled.optimizer.state_dict()) {
    EXPECT_TRUE(torch::equal(tensor.cpu(), before.at("state " + name))) << name;
  }
  expect_same(cpu.waiting(3, 3, batches), walled.ahead(3, 3, batches));
  expect_same(cpu, walled);
}

TEST_F(WalledTest, RecordedStepsAreTheSame) {
  const std::vector<Batch> batches{tiny_batch(8, 1), tiny_batch(8, 2)};
  Training cpu(torch::kCPU), walled(kWalled);
  walled.step.record_steps();
  const WalledCounts before = counts();
  const auto expected = cpu.waiting(0, 8, batches);
  expect_same(expected, walled.ahead(0, 8, batches));
  expect_same(cpu, walled);
  EXPECT_EQ(counts().replays - before.replays, 7);  // all but the first

  Training dropout(kWalled, 0.1);
  EXPECT_THROW(dropout.step.record_steps(), ConfigError);
  Training host(torch::kCPU);
  EXPECT_THROW(host.step.record_steps(), ConfigError);
}

TEST_F(WalledTest, GeneratesWhatTheCpuGenerates) {
  Training cpu(torch::kCPU), walled(kWalled);
  const std::vector<Batch> batches{tiny_batch(16, 1)};
  cpu.waiting(0, 20, batches);
  walled.ahead(0, 20, batches);
  const std::vector<std::vector<TokenId>> prompts{{7, 8, 9}, {10, 11}, {12, 7, 8, 9, 10}};
  const auto expected = generate_batch(cpu.model, prompts, {.max_gen_len = 8, .batch_rows = 2});
  const auto found = generate_batch(walled.model, prompts, {.max_gen_len = 8, .batch_rows = 2});
  for (std::size_t i = 0; i < prompts.size(); ++i) {
    EXPECT_EQ(expected[i].ids, found[i].ids);
  }
}

}  // namespace
}  // namespace needle::test
