// What several subcommands of needle-eval ask for: rows, a model, how answers are made.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include <CLI/CLI.hpp>

#include "needle/eval/eval_case.h"
#include "needle/eval/evaluate.h"

#include "apps/needle_eval/eval_model.h"

namespace needle {

struct DataOptions {
  std::string file;
  std::int64_t limit = 0;
  std::size_t per_bucket = 0;
  std::uint64_t seed = 42;
};

struct AnswerOptions {
  std::string constrain = "grammar";
  std::string ground = "off";
  std::int64_t max_gen_len = 512;
  std::size_t threads = 0;
};

void add_data_options(CLI::App& command, DataOptions& options, bool required);
void add_device_options(CLI::App& command, std::string& device, std::vector<std::string>& plugins);
void add_model_options(CLI::App& command, EvalModelOptions& options);
void add_answer_options(CLI::App& command, AnswerOptions& options);

// Throws DataError if there is none.
std::vector<EvalCase> read_cases(const DataOptions& options);

// With a progress bar. `confidence`: of each answer, too.
Predictions answer(const EvalModel& model, std::span<const EvalCase> cases,
                   const AnswerOptions& options, bool confidence = false);

}  // namespace needle
