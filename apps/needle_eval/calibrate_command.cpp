#include <iostream>
#include <memory>
#include <string>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/json.h"
#include "needle/eval/calibrate.h"
#include "needle/quant/weights_file.h"

#include "apps/needle_eval/commands.h"
#include "apps/needle_eval/options.h"

namespace needle {
namespace {

struct CalibrateOptions {
  EvalModelOptions model;
  DataOptions data;
  AnswerOptions answer;
  std::string output;
  double target_precision = 0.95;
  bool json = false;
};

void calibrate(const CalibrateOptions& options) {
  const std::filesystem::path path = options.model.path;
  if (!options.output.empty() && path.extension() != ".needle") {
    throw ConfigError(
        format("{}: --output writes a .needle file, so --model must be one; export "
               "the checkpoint first (needle-export export)",
               path));
  }
  const std::vector<EvalCase> cases = read_cases(options.data);
  EvalModelOptions model_options = options.model;
  model_options.threads = options.answer.threads;
  const EvalModel model = open_model(model_options);
  const JudgedAnswers judged =
      judge(cases, answer(model, cases, options.answer, /*confidence=*/true));
  if (judged.calls.empty()) {
    throw DataError(
        format("{}: the model answers none of the {} rows with a call; there is nothing "
               "to calibrate",
               options.data.file, cases.size()));
  }
  const Calibration calibration{
      .answer = fit_platt(judged.answers),
      .call = fit_platt(judged.calls),
      .data = std::filesystem::path(options.data.file).filename().string(),
      .constrain = options.answer.constrain};
  const CalibrationReport answers = cross_validate(judged.answers);
  const CalibrationReport calls = cross_validate(judged.calls);
  if (!options.output.empty()) {
    const WeightsFile file(path);
    Json config = file.config();
    config["calibration"] = to_json(calibration);
    write_with_config(file, config, options.output);
  }
  if (options.json) {
    const Json json = {{"model", options.model.path},
                       {"data", options.data.file},
                       {"constrain", options.answer.constrain},
                       {"calibration", to_json(calibration)},
                       {"answers", to_json(answers, options.target_precision)},
                       {"calls", to_json(calls, options.target_precision)},
                       {"output", options.output}};
    std::cout << json.dump() << std::endl;
    return;
  }
  std::cout << calibration_text(answers, calls, options.target_precision);
  if (!options.output.empty()) {
    std::cout << "\nwritten to " << options.output << "\n";
  }
  std::cout << std::flush;
}

}  // namespace

void add_calibrate_command(CLI::App& app) {
  auto options = std::make_shared<CalibrateOptions>();
  auto* command = app.add_subcommand(
      "calibrate", "What the model's confidence means: how often answers that sure are right");
  command
      ->add_option("--model", options->model.path,
                   ".needle file; without --output a checkpoint or run folder, too")
      ->required();
  add_data_options(*command, options->data, /*required=*/true);
  add_answer_options(*command, options->answer);
  add_model_options(*command, options->model);
  command->add_option("-o,--output", options->output,
                      "Write the model with its calibration to this .needle file; may be the same");
  command
      ->add_option("--target-precision", options->target_precision,
                   "Report the threshold from which on this share is right")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print the report as JSON");
  command->footer(
      "Data must be rows that the model was not trained on; a few hundred will do. The figures\n"
      "\"after\" are of rows that the fit did not see (five folds). needle-run --confidence then\n"
      "gives \"calibrated\" beside \"probability\".\n"
      "  needle-eval calibrate --model model.needle --data runs/mine/bundle/validation.jsonl -o "
      "model.needle");
  command->callback([options] { calibrate(*options); });
}

}  // namespace needle
