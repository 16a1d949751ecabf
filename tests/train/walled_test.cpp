// The device layer on a device that is not the CPU (walled_device.cpp), loaded as a plug-in.
#include <csignal>
#include <limits>
#include <string>
#include <vector>

#include <dlfcn.h>
#include <gtest/gtest.h>

#include <torch/torch.h>

#include "needle/core/error.h"
#include "needle/model/init.h"
#include "needle/model/model_engine.h"
#include "needle/train/device.h"
#include "needle/train/device_batch.h"
#include "needle/train/device_plugin.h"
#include "needle/train/run_config.h"
#include "needle/train/run_setup.h"
#include "needle/train/train_step.h"

#include "tests/support/program.h"
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
  EXPECT_THROW(DeviceGraph(kWalled, [&] { (void)sum.item<float>(); }), Error);
  EXPECT_THROW(DeviceGraph(torch::kCPU, [] {}), Error);
}

}  // namespace
}  // namespace needle::test
