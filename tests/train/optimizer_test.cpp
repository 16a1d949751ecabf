#include "needle/train/optimizer.h"

#include <set>

#include <gtest/gtest.h>

#include "needle/core/error.h"

#include "tests/train/golden_case.h"

namespace needle::test {
namespace {

NamedTensors small_parameters() {
  torch::manual_seed(1);
  return {{"kernel", torch::randn({4, 6}).requires_grad_()},
          {"lone_kernel", torch::randn({3, 3}).requires_grad_()},
          {"scale", torch::randn({5}).requires_grad_()},
          {"gate", torch::randn({}).requires_grad_()}};
}

const std::vector<std::string> kKernels{"kernel", "lone_kernel"};
const OptimizerConfig kFlat{.schedule = {.final_ratio = 1.0, .warmup_steps = 1}};

void fill_gradients(const NamedTensors& parameters, std::uint64_t seed,
                    const std::set<std::string>& leave_out = {}) {
  torch::manual_seed(seed);
  for (const auto& [name, parameter] : parameters) {
    const auto gradient = torch::randn_like(parameter);
    auto leaf = parameter;
    leaf.mutable_grad() = leave_out.contains(name) ? torch::Tensor() : gradient.detach();
  }
}

NamedTensors copy_of(const NamedTensors& tensors) {
  NamedTensors copy;
  for (const auto& [name, tensor] : tensors) {
    copy[name] = tensor.detach().clone();
  }
  return copy;
}

void expect_equal(const NamedTensors& a, const NamedTensors& b) {
  ASSERT_EQ(a.size(), b.size());
  for (const auto& [name, tensor] : a) {
    EXPECT_TRUE(torch::equal(tensor, b.at(name))) << name;
  }
}

TEST(OptimizerTest, TheFirstUpdateHasRateZero) {
  const auto parameters = small_parameters();
  const auto before = copy_of(parameters);
  Optimizer optimizer(parameters, kKernels, {}, 100);
  fill_gradients(parameters, 2);
  EXPECT_EQ(optimizer.lr_adam(), 0.0);
  optimizer.step();
  expect_equal(copy_of(parameters), before);
  EXPECT_EQ(optimizer.updates(), 1);
  EXPECT_DOUBLE_EQ(optimizer.lr_muon(), 0.02 / 5);  // warmup of 5 steps
  fill_gradients(parameters, 3);
  optimizer.step();
  EXPECT_GT(largest(parameters.at("kernel") - before.at("kernel")), 0.0);
  EXPECT_GT(largest(parameters.at("gate") - before.at("gate")), 0.0);
}

TEST(OptimizerTest, ClipsByTheNormOverAllGradients) {
  const auto parameters = small_parameters();
  Optimizer optimizer(parameters, kKernels, kFlat, 100);
  fill_gradients(parameters, 2);
  double squares = 0.0;
  for (const auto& [name, parameter] : parameters) {
    squares += parameter.grad().square().sum().item<double>();
  }
  const double norm = std::sqrt(squares);
  ASSERT_GT(norm, 1.0);
  const auto gradient = parameters.at("scale").grad().clone();
  EXPECT_NEAR(optimizer.step(), norm, 1e-5);
  const auto first_moment = optimizer.state_dict().at("adam.m.scale");
  EXPECT_LE(largest(first_moment - 0.1 * gradient / norm), 1e-6);
  for (auto [name, parameter] : parameters) {
    parameter.mutable_grad().mul_(0.1 / norm);
  }
  const auto short_gradient = parameters.at("scale").grad().clone();
  const auto before = first_moment.clone();
  optimizer.step();  // below 1: unchanged
  EXPECT_LE(largest(first_moment - (0.9 * before + 0.1 * short_gradient)), 1e-7);
}

TEST(OptimizerTest, AParameterWithoutGradientIsLeftAlone) {
  const auto parameters = small_parameters();
  Optimizer optimizer(parameters, kKernels, kFlat, 100);
  for (std::uint64_t seed = 2; seed < 5; ++seed) {
    fill_gradients(parameters, seed);
    optimizer.step();
  }
  const auto before = copy_of(parameters);
  const auto state = copy_of(optimizer.state_dict());
  fill_gradients(parameters, 5, {"lone_kernel", "gate"});
  optimizer.step();
  for (const char* name : {"lone_kernel", "gate"}) {
    EXPECT_TRUE(torch::equal(parameters.at(name), before.at(name))) << name;
  }
  const auto after = optimizer.state_dict();
  for (const char* name :
       {"muon.momentum.lone_kernel", "adam.m.gate", "adam.v.gate", "adam.updates.gate"}) {
    EXPECT_TRUE(torch::equal(after.at(name), state.at(name))) << name;
  }
  EXPECT_FALSE(torch::equal(parameters.at("kernel"), before.at("kernel")));
}

TEST(OptimizerTest, TheReferencesWayMovesAParameterWithoutGradient) {
  const auto parameters = small_parameters();
  OptimizerConfig config = kFlat;
  config.step_without_gradient = true;
  Optimizer optimizer(parameters, kKernels, config, 100);
  fill_gradients(parameters, 2, {"lone_kernel"});
  optimizer.step();
  const auto before = copy_of(parameters);
  fill_gradients(parameters, 3, {"lone_kernel"});
  optimizer.step();
  // No momentum yet: decay alone, 0.01 times the rate.
  EXPECT_LE(largest(parameters.at("lone_kernel") - before.at("lone_kernel") * (1.0 - 0.0002)),
            5e-7);  // two roundings of values up to 2
  EXPECT_GT(largest(parameters.at("lone_kernel") - before.at("lone_kernel")), 1e-5);
}

TEST(OptimizerTest, GoesOnFromItsStateBitForBit) {
  const auto parameters = small_parameters();
  Optimizer optimizer(parameters, kKernels, {}, 20);
  for (std::uint64_t i = 0; i < 5; ++i) {
    fill_gradients(parameters, 10 + i,
                   i % 2 == 0 ? std::set<std::string>{"gate"} : std::set<std::string>{});
    optimizer.step();
  }
  const auto state = copy_of(optimizer.state_dict());
  NamedTensors others;
  for (const auto& [name, tensor] : copy_of(parameters)) {
    others[name] = tensor.requires_grad_();
  }
  Optimizer resumed(others, kKernels, {}, 20);
  resumed.load_state_dict(state);
  EXPECT_EQ(resumed.updates(), 5);
  for (std::uint64_t i = 0; i < 5; ++i) {
    fill_gradients(parameters, 20 + i);
    fill_gradients(others, 20 + i);
    EXPECT_EQ(optimizer.lr_adam(), resumed.lr_adam());
    optimizer.step();
    resumed.step();
  }
  expect_equal(copy_of(parameters), copy_of(others));
  expect_equal(optimizer.state_dict(), resumed.state_dict());
}

TEST(OptimizerTest, RefusesAStateThatIsNotItsOwn) {
  const auto parameters = small_parameters();
  Optimizer optimizer(parameters, kKernels, {}, 20);
  const auto state = copy_of(optimizer.state_dict());
  const auto message = [&](const NamedTensors& wrong) -> std::string {
    try {
      optimizer.load_state_dict(wrong);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "";
  };
  auto missing = state;
  missing.erase("adam.v.scale");
  EXPECT_NE(message(missing).find("adam.v.scale is missing"), std::string::npos);
  auto unknown = state;
  unknown["adam.m.other"] = torch::zeros({1});
  EXPECT_NE(message(unknown).find("adam.m.other is unknown"), std::string::npos);
  auto shape = state;
  shape["muon.momentum.kernel"] = torch::zeros({6, 4});
  EXPECT_NE(message(shape).find("muon.momentum.kernel"), std::string::npos);
  auto type = state;
  type["updates"] = torch::zeros({});
  EXPECT_NE(message(type), "");
  auto count = state;
  count["adam.updates.gate"] = torch::tensor(std::int64_t{-3});
  EXPECT_NE(message(count).find("counts -3 updates"), std::string::npos);
  expect_equal(optimizer.state_dict(), state);
}

TEST(OptimizerTest, RefusesSettingsOutOfRange) {
  const auto parameters = small_parameters();
  const auto make = [&](const OptimizerConfig& config) {
    Optimizer(parameters, kKernels, config, 10);
  };
  EXPECT_THROW(make({.muon = {.momentum = 1.0}}), ConfigError);
  EXPECT_THROW(make({.muon = {.newton_schulz_steps = 0}}), ConfigError);
  EXPECT_THROW(make({.adam = {.eps = 0.0}}), ConfigError);
  EXPECT_THROW(make({.max_grad_norm = -1.0}), ConfigError);
  EXPECT_THROW(make({.adam = {.peak_lr = std::nan("")}}), ConfigError);
  EXPECT_THROW(Optimizer(parameters, {"no_such_kernel"}, {}, 10), Error);
}

TEST(OptimizerTest, NormWithoutAnyGradientIsZero) {
  const auto parameters = small_parameters();
  const Optimizer optimizer(parameters, kKernels, {}, 20);
  EXPECT_EQ(optimizer.grad_norm().item<double>(), 0.0);
}

TEST(OptimizerGoldenTest, EveryStepIsTheReferences) {
  torch::set_num_threads(1);
  const Json plan = read_json_file(golden("optim/steps.json"));
  const auto tensors = load_tensors(golden("optim/steps.safetensors"));
  const ModelConfig config = golden_config(plan.at("config"));
  Needle model(config);
  assign_parameters(model, from_released(under(tensors, "step0/params/"), config, "step0"),
                    "step0");
  OptimizerConfig settings;
  settings.adam.peak_lr = plan.at("adam_peak");
  settings.muon.peak_lr = plan.at("muon_peak");
  settings.schedule.decay_ratio = plan.at("decay_ratio");
  settings.schedule.warmup_steps = plan.at("warmup_steps").get<std::int64_t>();
  Optimizer optimizer(model, settings, plan.at("total_steps"));
  const auto parameters = named_parameters(model);

  for (const auto& step : plan.at("steps")) {
    const auto n = step.at("step").get<std::int64_t>() + 1;  // gradients and results count from 1
    SCOPED_TRACE(n);
    for (const auto& [name, gradient] :
         from_released(under(tensors, format("step{}/grad/", n)), config, "gradients")) {
      auto parameter = parameters.at(name);
      parameter.mutable_grad() = gradient.clone();
    }
    EXPECT_NEAR(optimizer.lr_adam(), step.at("adam").get<double>(), 1e-5 * settings.adam.peak_lr);
    EXPECT_NEAR(optimizer.lr_muon(), step.at("muon").get<double>(), 1e-5 * settings.muon.peak_lr);
    const double norm = step.at("grad_norm");
    EXPECT_NEAR(optimizer.step(), norm, 1e-5 * norm);
    expect_close(released_parameters(model), under(tensors, format("step{}/params/", n)), 0.0, 1e-5,
                 "after the step");
  }

  // The state, leaf by leaf: it also says which group every leaf belongs to.
  const auto state = optimizer.state_dict();
  const auto check_state = [&](const char* folder, const std::string& prefix, const Json& leaves,
                               double tolerance) {
    const auto wanted = under(tensors, folder);
    EXPECT_EQ(wanted.size(), leaves.size());
    for (const ReleasedArray& array : released_arrays(config)) {
      const auto found = wanted.find(array.path);
      const bool listed = std::find(leaves.begin(), leaves.end(), array.path) != leaves.end();
      EXPECT_EQ(listed, found != wanted.end()) << array.path;
      for (std::size_t i = 0; i < array.names.size(); ++i) {
        const auto ours = state.find(prefix + array.names[i]);
        ASSERT_EQ(ours != state.end(), listed) << array.path;
        if (!listed) {
          continue;
        }
        auto slice = array.stacked ? found->second[static_cast<std::int64_t>(i)] : found->second;
        slice = array.kernel ? slice.t() : slice;
        EXPECT_LE(largest(ours->second - slice), tolerance) << array.names[i];
      }
    }
  };
  check_state("final/momentum/", "muon.momentum.", plan.at("muon_leaves"), 1e-4);
  check_state("final/adam_m/", "adam.m.", plan.at("adam_leaves"), 1e-4);
  check_state("final/adam_v/", "adam.v.", plan.at("adam_leaves"), 1e-4);
}

}  // namespace
}  // namespace needle::test
