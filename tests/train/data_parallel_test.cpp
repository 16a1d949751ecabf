#include "needle/train/data_parallel.h"

#include <algorithm>
#include <chrono>
#include <functional>
#include <limits>
#include <set>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/model/checkpoint.h"
#include "needle/train/bucket_plan.h"
#include "needle/train/train_step.h"

#include "tests/support/golden.h"
#include "tests/train/rank_processes.h"
#include "tests/train/tiny_training.h"

namespace needle {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

std::vector<ParameterCost> costs(int count) {
  std::vector<ParameterCost> order;
  for (int i = 0; i < count; ++i) {
    order.push_back({.name = "layer" + std::to_string(i) + ".weight",
                     .elements = 1 << 18,
                     .update_cost = 1.0 + i % 3});
  }
  order.push_back({.name = "log_temp", .elements = 1, .update_cost = 1e-3});
  return order;
}

TEST(BucketPlanTest, EveryParameterIsInOneBucketAndTheLateOnesAreApart) {
  for (const std::int64_t world : {1, 2, 3, 16}) {
    std::vector<std::string> names;
    std::vector<double> load(static_cast<std::size_t>(world), 0.0);
    const auto order = costs(48);
    for (const BucketPlan& bucket : plan_buckets(order, world)) {
      names.insert(names.end(), bucket.names.begin(), bucket.names.end());
      for (const std::string& name : bucket.names) {
        load[static_cast<std::size_t>(bucket.owner)] +=
            std::find_if(order.begin(), order.end(), [&](const auto& one) {
              return one.name == name;
            })->update_cost;
      }
      if (bucket.names.front() == "log_temp") {
        EXPECT_EQ(bucket.names.size(), 1U);
      }
    }
    ASSERT_EQ(names.size(), order.size());
    for (std::size_t i = 0; i < names.size(); ++i) {
      EXPECT_EQ(names[i], order[i].name);  // still the order of the backward pass
    }
    // 96 units of work: nobody has more than a third above the fair share.
    EXPECT_LE(*std::max_element(load.begin(), load.end()),
              96.0 / static_cast<double>(world) * 1.34);
  }
}

int free_port() {
  const int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  socklen_t size = sizeof(address);
  bind(fd, reinterpret_cast<sockaddr*>(&address), size);
  getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size);
  close(fd);
  return ntohs(address.sin_port);
}

// Runs `body` as every rank in a process of its own; what EXPECT finds there ends in this process's
// result. Called before anything of LibTorch ran here: a fork takes no threads along.
void as_ranks(std::int64_t world, const std::function<void(Ranks&)>& body,
              const RanksOptions& options = {.silence_s = 20.0}) {
  const int port = free_port();
  test::expect_good(test::as_processes(world, [&](std::int64_t rank) {
    torch::set_num_threads(1);
    const RankEnvironment env{.rank = rank,
                              .world = world,
                              .local_rank = rank,
                              .local_world = world,
                              .master_port = port};
    const auto ranks = Ranks::join(env, torch::kCPU, options);
    body(*ranks);
  }));
}

// Rows [first, last) of a batch.
Batch part_of(const Batch& whole, std::int64_t first, std::int64_t last) {
  Batch part{.rows = last - first, .enc_len = whole.enc_len, .dec_len = whole.dec_len};
  const auto cut = [&](auto& to, const auto& from, std::int64_t length) {
    to.assign(from.begin() + first * length, from.begin() + last * length);
  };
  cut(part.source, whole.source, whole.enc_len);
  cut(part.decoder_in, whole.decoder_in, whole.dec_len);
  cut(part.target, whole.target, whole.dec_len);
  cut(part.classes, whole.classes, whole.dec_len);
  return part;
}

OptimizerConfig fast_config(NewtonSchulzDtype newton_schulz = NewtonSchulzDtype::kFloat32) {
  OptimizerConfig config;
  config.schedule.warmup_steps = 1;
  config.muon.newton_schulz_dtype = newton_schulz;
  return config;
}

// Four steps of two micro-batches of five rows; the fourth has a retrieval loss.
struct Training {
  static constexpr int kSteps = 4;
  static TrainStepConfig step_config() {
    TrainStepConfig config;
    config.contrastive_every = 3;
    config.quant.every = 2;
    return config;
  }
  static Batch batch(int step, int micro) {
    return test::tiny_batch(5, 100 + static_cast<std::uint64_t>(10 * step + micro));
  }
};

struct Outcome {
  std::vector<StepReport> reports;
  NamedTensors parameters;
  NamedTensors state;
};

Outcome train_alone() {
  Needle model = test::tiny_model();
  Optimizer optimizer(model, fast_config(), 20);
  TrainStep step(model, optimizer, Training::step_config(), torch::kCPU, 42);
  Outcome outcome;
  const ContrastiveBatch pairs = test::tiny_pairs(4, 7);
  for (int i = 0; i < Training::kSteps; ++i) {
    const std::vector<Batch> batches{Training::batch(i, 0), Training::batch(i, 1)};
    outcome.reports.push_back(step.run(i, batches, &pairs));
  }
  outcome.parameters = named_parameters(model);
  outcome.state = optimizer.state_dict();
  return outcome;
}

Outcome train_on(Ranks& ranks, NewtonSchulzDtype newton_schulz = NewtonSchulzDtype::kFloat32) {
  // Only the first rank's parameters count.
  Needle model = test::tiny_model(/*seed=*/ranks.is_first() ? 1 : 99);
  DataParallel replicas(ranks, model);
  Optimizer optimizer = replicas.make_optimizer(fast_config(newton_schulz), 20);
  TrainStep step(model, optimizer, Training::step_config(), torch::kCPU, 42,
                 static_cast<std::uint64_t>(ranks.rank()), &replicas);
  Outcome outcome;
  const ContrastiveBatch pairs = test::tiny_pairs(4, 7);
  for (int i = 0; i < Training::kSteps; ++i) {
    std::vector<Batch> batches;
    StepCounts counts;
    for (int micro = 0; micro < 2; ++micro) {
      const Batch whole = Training::batch(i, micro);
      counts.target_tokens += whole.target_tokens();
      counts.positions += whole.rows * whole.dec_len;
      const std::int64_t first = ranks.rank() * whole.rows / ranks.world();
      const std::int64_t last = (ranks.rank() + 1) * whole.rows / ranks.world();
      if (first < last) {
        batches.push_back(part_of(whole, first, last));
      }
    }
    outcome.reports.push_back(step.run(i, batches, &pairs, &counts));
  }
  replicas.check_equal_parameters();
  outcome.parameters = named_parameters(model);
  outcome.state = replicas.gather_state(optimizer);
  return outcome;
}

// Sums are taken in another order: float32 rounding, which a step through Newton-Schulz and AdamW's
// root may enlarge. A wrong divisor or a lost slice shows in the first digit.
constexpr double kTolerance = 2e-4;

class ExchangeTest : public testing::TestWithParam<ExchangeKind> {};

INSTANTIATE_TEST_SUITE_P(DataParallelTest, ExchangeTest,
                         testing::Values(ExchangeKind::kShared, ExchangeKind::kGloo),
                         [](const auto& kind) {
                           return std::string(kExchangeKindNames.name(kind.param));
                         });

TEST_P(ExchangeTest, AnyNumberOfRanksLearnsWhatOneProcessLearns) {
  const RanksOptions options{.exchange = GetParam(), .silence_s = 20.0};
  for (const std::int64_t world : {2, 3, 7}) {  // of seven ranks, two have no row
    const auto body = [](Ranks& ranks) {
      const Outcome together = train_on(ranks);
      const Outcome alone = train_alone();
      for (int i = 0; i < Training::kSteps; ++i) {
        const StepReport& a = alone.reports[static_cast<std::size_t>(i)];
        const StepReport& b = together.reports[static_cast<std::size_t>(i)];
        EXPECT_NEAR(a.loss, b.loss, 1e-5 * a.loss) << i;
        EXPECT_NEAR(a.grad_norm, b.grad_norm, kTolerance * a.grad_norm) << i;
        EXPECT_EQ(a.target_tokens, b.target_tokens);
        EXPECT_EQ(a.source_tokens, b.source_tokens);
        EXPECT_EQ(a.contrastive.has_value(), b.contrastive.has_value());
        EXPECT_NEAR(a.contrastive.value_or(0.0), b.contrastive.value_or(0.0), 1e-5);
      }
      EXPECT_TRUE(alone.reports.back().contrastive.has_value());
      for (const auto& [name, value] : alone.parameters) {
        const auto difference = (value - together.parameters.at(name)).abs().max();
        EXPECT_LT(difference.item<double>(), kTolerance) << name;
      }
      if (ranks.is_first()) {  // the layout of one process
        ASSERT_EQ(together.state.size(), alone.state.size());
        for (const auto& [name, value] : alone.state) {
          ASSERT_TRUE(together.state.contains(name)) << name;
          EXPECT_EQ(together.state.at(name).sizes(), value.sizes()) << name;
          EXPECT_TRUE(torch::allclose(together.state.at(name).to(torch::kFloat32),
                                      value.to(torch::kFloat32), 1e-2, 1e-3))
              << name;
        }
      } else {
        EXPECT_TRUE(together.state.empty());
      }
    };
    as_ranks(world, body, options);
  }
}

// Two numbers have one sum, in whatever order they are added; of more, each way is the same from
// run to run.
TEST(DataParallelTest, TwoRanksGetTheSameBitsBothWays) {
  const test::TemporaryFolder folder;
  const auto train = [&](std::int64_t world, ExchangeKind kind, const std::string& name) {
    as_ranks(world,
             [&](Ranks& ranks) {
               EXPECT_EQ(ranks.exchange(), kExchangeKindNames.name(kind));
               const Outcome outcome = train_on(ranks);
               NamedTensors all = outcome.parameters;
               for (const auto& [key, value] : outcome.state) {
                 all["state." + key] = value;
               }
               for (std::size_t i = 0; i < outcome.reports.size(); ++i) {
                 all["step." + std::to_string(i)] = torch::tensor(
                     {outcome.reports[i].loss, outcome.reports[i].grad_norm}, torch::kFloat32);
               }
               if (ranks.is_first()) {
                 save_tensors(folder / name, all);
               }
             },
             {.exchange = kind, .silence_s = 20.0});
    return read_file(folder / name);
  };
  EXPECT_EQ(train(2, ExchangeKind::kShared, "shared2"), train(2, ExchangeKind::kGloo, "gloo2"));
  const std::string three = train(3, ExchangeKind::kShared, "shared3");
  EXPECT_EQ(three, train(3, ExchangeKind::kShared, "again3"));
  EXPECT_NE(three, read_file(folder / "shared2"));  // the comparison sees more than nothing
}

TEST_P(ExchangeTest, ARankThatDoesNotComeIsNamed) {
  as_ranks(2,
           [](Ranks& ranks) {
             ranks.barrier();
             if (ranks.rank() == 1) {  // lives, but is busy with something else
               std::this_thread::sleep_for(std::chrono::seconds(6));
               _exit(0);
             }
             try {
               ranks.barrier();
               ADD_FAILURE() << "nothing was thrown";
             } catch (const Error& error) {
               EXPECT_THAT(error.what(), HasSubstr("rank 0 cannot go on: rank 1 (pid "));
               EXPECT_THAT(error.what(), HasSubstr("hangs: alive, but 1 collective"));
             }
             EXPECT_THROW(ranks.barrier(), Error);
           },
           {.exchange = GetParam(), .silence_s = 20.0, .progress_s = 1.5, .beat_s = 0.2});
}

TEST(DataParallelTest, RanksOfSeveralHostsShareNoMemory) {
  const int port = free_port();
  const auto message = [&](ExchangeKind kind, std::int64_t rank) -> std::string {
    const RankEnvironment env{
        .rank = rank, .world = 2, .local_rank = 0, .local_world = 1, .master_port = port};
    try {
      const auto ranks = Ranks::join(env, torch::kCPU, {.exchange = kind});
      return ranks->shared() == nullptr ? ranks->exchange() : "shares";
    } catch (const Error& error) {
      return error.what();
    }
  };
  for (const ExchangeKind kind : {ExchangeKind::kAuto, ExchangeKind::kShared}) {
    std::vector<pid_t> children;
    for (const std::int64_t rank : {0, 1}) {
      const pid_t pid = fork();
      if (pid == 0) {
        const std::string text = message(kind, rank);
        const bool good =
            kind == ExchangeKind::kAuto
                ? text == "gloo"
                : text.find("rank 0: not all ranks are on its host") != std::string::npos;
        if (!good) {
          std::fprintf(stderr, "rank %d: %s\n", static_cast<int>(rank), text.c_str());
        }
        _exit(good ? 0 : 1);
      }
      children.push_back(pid);
    }
    for (const pid_t pid : children) {
      int status = 0;
      waitpid(pid, &status, 0);
      EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "status " << status;
    }
  }
}

TEST(DataParallelTest, AStateIsTakenUpByAnotherNumberOfRanks) {
  as_ranks(3, [](Ranks& ranks) {
    Needle model = test::tiny_model();
    DataParallel replicas(ranks, model);
    const Outcome alone = train_alone();
    Optimizer optimizer = replicas.make_optimizer(fast_config(), 20);
    optimizer.load_state_dict(replicas.own_part(alone.state));
    EXPECT_EQ(optimizer.updates(), Training::kSteps);
    const NamedTensors whole = replicas.gather_state(optimizer);
    for (const auto& [name, value] : whole) {
      EXPECT_TRUE(torch::equal(value, alone.state.at(name))) << name;
    }
    EXPECT_EQ(whole.size(), ranks.is_first() ? alone.state.size() : 0U);
  });
}

TEST(DataParallelTest, OneBadRankMakesAllSkipAndIsNamed) {
  as_ranks(3, [](Ranks& ranks) {
    Needle model = test::tiny_model();
    DataParallel replicas(ranks, model);
    Optimizer optimizer = replicas.make_optimizer(fast_config(), 20);
    TrainStep step(model, optimizer, {}, torch::kCPU, 42, static_cast<std::uint64_t>(ranks.rank()),
                   &replicas);
    const NamedTensors before = [&] {
      NamedTensors copies;
      for (const auto& [name, value] : named_parameters(model)) {
        copies[name] = value.detach().clone();
      }
      return copies;
    }();
    const Batch batch = test::tiny_batch(2, 5);
    const StepCounts counts{.target_tokens = 3 * batch.target_tokens(),
                            .positions = 3 * batch.rows * batch.dec_len};
    {
      const torch::NoGradGuard no_grad;
      if (ranks.rank() == 1) {  // a flipped bit in one process
        model->decoder->final_norm->scale[0] = std::numeric_limits<float>::quiet_NaN();
      }
    }
    const StepReport report = step.run(1, {&batch, 1}, nullptr, &counts);
    EXPECT_TRUE(report.skipped);
    EXPECT_THAT(report.skip_reason, HasSubstr("nan"));
    EXPECT_THAT(report.skip_reason, HasSubstr("on rank 1"));
    EXPECT_EQ(optimizer.updates(), 0);
    if (ranks.rank() != 1) {
      for (const auto& [name, value] : before) {
        EXPECT_TRUE(torch::equal(value, named_parameters(model).at(name))) << name;
      }
    }
    // Ranks that have come apart are found out.
    try {
      replicas.check_equal_parameters();
      ADD_FAILURE() << "nothing was thrown";
    } catch (const Error& error) {
      EXPECT_THAT(error.what(), HasSubstr("rank 1 differ"));
    }
  });
}

TEST(DataParallelTest, AWishToStopReachesAll) {
  as_ranks(2, [](Ranks& ranks) {
    Needle model = test::tiny_model();
    DataParallel replicas(ranks, model);
    for (const bool wish : {false, true}) {
      replicas.begin_step();
      replicas.want_stop(wish && ranks.rank() == 1);
      EXPECT_EQ(replicas.finish_backward(torch::zeros({1})).stop, wish);
    }
    const auto texts = ranks.gather("of rank " + std::to_string(ranks.rank()));
    EXPECT_THAT(texts, ElementsAre("of rank 0", "of rank 1"));
    EXPECT_EQ(ranks.broadcast(ranks.rank() == 1 ? std::string("x\0y", 3) : "", 1),
              std::string("x\0y", 3));
  });
}

}  // namespace
}  // namespace needle
