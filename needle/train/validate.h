// What a run measures on held-out data while it trains: perplexity with and without quantised
// kernels, and whether the calls it writes are right.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include <torch/torch.h>

#include "needle/core/enum_names.h"
#include "needle/data/example.h"
#include "needle/data/packed_dataset.h"
#include "needle/decode/engine.h"
#include "needle/eval/evaluate.h"
#include "needle/model/needle.h"
#include "needle/text/prompt.h"
#include "needle/text/tokenizer.h"
#include "needle/train/ranks.h"
#include "needle/train/tensorboard.h"

namespace needle {

// Who answers queries while a run validates and on its test rows. kAuto: the exported engine, where
// the model is on a CPU and its kernels are to be INT4.
enum class GenerateWith { kAuto, kEngine, kModel };
inline constexpr EnumNames<GenerateWith, 3> kGenerateWithNames{{{{GenerateWith::kAuto, "auto"},
                                                                 {GenerateWith::kEngine, "engine"},
                                                                 {GenerateWith::kModel, "model"}}}};
template <>
struct EnumTable<GenerateWith> {
  static constexpr const auto& value = kGenerateWithNames;
};

// An engine over the INT4 file that the model would be exported to. Rooms that train do not know
// the runtime: programs give one.
using ExportedEngine = std::function<std::shared_ptr<const Engine>(
    const Needle& model, const Tokenizer& tokenizer, const PromptConfig& prompt)>;

struct ValidateConfig {
  std::int64_t perplexity_rows = 64;
  std::int64_t batch_rows = 8;
  std::int64_t generate_rows = 50;
  FakeQuant generate_quant = FakeQuant::kInt4;
  GenerateWith generate_with = GenerateWith::kAuto;
  std::int64_t max_gen_len = 256;
  double max_seconds = 0.0;
  std::int64_t threads = 0;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("perplexity_rows", self.perplexity_rows,
          "Rows that perplexity is measured on, at most; 0: none");
    visit("batch_rows", self.batch_rows, "Rows in one forward pass");
    visit("generate_rows", self.generate_rows, "Queries answered greedily, at most; 0: none");
    visit("generate_quant", self.generate_quant,
          "Kernels while answering, as they will be deployed: int4, int8 or none");
    visit(
        "generate_with", self.generate_with,
        "engine: the file that would be exported answers, several times as fast (INT4, the "
        "embedding too, quantised activations); model: LibTorch, on the model as it is; auto: the "
        "engine on a CPU with generate_quant = int4");
    visit("max_gen_len", self.max_gen_len, "Longest answer in tokens");
    visit("max_seconds", self.max_seconds,
          "Stop answering after so long and score what there is; 0: never. A resumed run repeats "
          "the scores only without");
    visit("threads", self.threads,
          "Queries of the final evaluation answered at a time; 0: one per core");
  }
};

// Who answers queries on `device` by this config: the exported engine, or nullptr for LibTorch,
// also where `exported` fails (a full disk; logged). Throws ConfigError if the config asks for an
// engine that cannot be.
std::shared_ptr<const Engine> answering_engine(const Needle& model, const torch::Device& device,
                                               const Tokenizer& tokenizer,
                                               const PromptConfig& prompt,
                                               const ValidateConfig& config,
                                               const ExportedEngine& exported);

// What to validate on. Either part may be empty.
struct ValidationData {
  std::vector<PackedDataset> datasets;  // none or one
  std::vector<std::int64_t> rows;       // of it
  std::vector<CallExample> examples;    // queries to answer
};

EvalCase to_eval_case(const CallExample& example);
std::vector<EvalCase> to_eval_cases(std::span<const CallExample> examples);

// The answers to all cases, on every rank: each answers its share of them. `ranks` null: all.
Predictions predict_on_ranks(const FunctionCaller& caller, std::span<const EvalCase> cases,
                             const EvaluateOptions& options, Ranks* ranks);

// Scores by name: "perplexity", "perplexity_int4"; and of the answers "exact_match", "call_f1",
// "single_call_f1", "name_f1", "parse_rate". A part without data contributes none. Leaves the model
// as it was. Several ranks share the work and come to the same scores. Throws Interrupted soon
// after `should_stop` says so; several ranks do not ask it. Where `exported` is empty or fails (a
// full disk; logged) LibTorch answers. Throws ConfigError if the config asks for an engine that
// cannot be.
std::vector<Scalar> validate(Needle model, const torch::Device& device, const Tokenizer& tokenizer,
                             const PromptConfig& prompt, const ValidationData& data,
                             const ValidateConfig& config, Ranks* ranks = nullptr,
                             const std::function<bool()>& should_stop = {},
                             const ExportedEngine& exported = {});

// Rows whose answer is exactly one call: the figure that the reference keeps its best checkpoint
// by.
double single_call_f1(const CallReport& report);

}  // namespace needle
