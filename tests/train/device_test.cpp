#include "needle/train/device.h"

#include <algorithm>

#include <gtest/gtest.h>

#include "needle/core/cpu_features.h"
#include "needle/core/error.h"

namespace needle::test {
namespace {

TEST(DeviceTest, TheCpuIsAlwaysThere) {
  EXPECT_EQ(choose_device("cpu"), torch::Device(torch::kCPU));
  const auto devices = available_devices();
  EXPECT_NE(std::find(devices.begin(), devices.end(), "cpu"), devices.end());
  for (const auto& name : devices) {
    EXPECT_EQ(choose_device(name).str(), name);
  }
}

TEST(DeviceTest, AutoTakesAnAcceleratorBeforeTheCpu) {
  const auto devices = available_devices();
  EXPECT_EQ(choose_device("auto").str(), devices.size() > 1 ? devices[1] : "cpu");
}

TEST(DeviceTest, RefusesWhatThisMachineLacksAndSaysWhatItHas) {
  for (const char* name : {"cuda:99", "meta", "no-such-device", "", "cuda:x"}) {
    try {
      choose_device(name);
      ADD_FAILURE() << name << " was accepted";
    } catch (const ConfigError& error) {
      EXPECT_NE(std::string(error.what()).find("cpu"), std::string::npos) << error.what();
    }
  }
}

TEST(DeviceTest, ComputeTypeFollowsTheDeviceUnlessAskedFor) {
  EXPECT_EQ(choose_compute_dtype(ComputeDtype::kAuto, torch::kCPU),
            has_fast_bfloat16() ? torch::kBFloat16 : torch::kFloat32);
  EXPECT_EQ(choose_compute_dtype(ComputeDtype::kAuto, {torch::kCUDA, 0}), torch::kBFloat16);
  EXPECT_EQ(choose_compute_dtype(ComputeDtype::kBfloat16, torch::kCPU), torch::kBFloat16);
  EXPECT_EQ(choose_compute_dtype(ComputeDtype::kFloat32, {torch::kCUDA, 0}), torch::kFloat32);
}

TEST(DeviceTest, SeedsRepeatAndMemoryIsReported) {
  const auto device = choose_device("auto");
  seed_generators(7);
  const auto first = torch::rand({4}, device);
  seed_generators(7);
  EXPECT_TRUE(torch::equal(torch::rand({4}, device), first));
  synchronize(device);
  const auto use = memory_use(torch::kCPU);
  EXPECT_GT(use.peak_bytes, 1 << 20);
  EXPECT_GE(use.peak_bytes, use.current_bytes);
}

}  // namespace
}  // namespace needle::test
