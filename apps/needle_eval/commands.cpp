#include "apps/needle_eval/commands.h"

#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/core/progress.h"
#include "needle/data/jsonl_reader.h"
#include "needle/eval/compare.h"
#include "needle/eval/evaluate.h"
#include "needle/eval/report.h"
#include "needle/eval/retrieval_metrics.h"
#include "needle/eval/stratify.h"

#include "apps/needle_eval/eval_model.h"
#include "apps/needle_eval/options.h"

namespace needle {
namespace {

TableStyle table_style(bool markdown) {
  return markdown ? TableStyle::kMarkdown : TableStyle::kText;
}

struct CallsOptions {
  std::vector<std::string> models;
  EvalModelOptions model;
  DataOptions data;
  AnswerOptions answer;
  std::size_t failures = 5;
  std::size_t keep_failures = 50;
  std::string output;
  std::string predictions;
  bool markdown = false;
  bool json = false;
};

void calls(CallsOptions options) {
  if (!options.predictions.empty() && options.models.size() > 1) {
    throw ConfigError("--predictions holds the answers of one model; give one --model");
  }
  const std::vector<EvalCase> cases = read_cases(options.data);
  std::vector<std::string> names;
  std::vector<CallReport> reports;
  for (const std::string& path : options.models) {
    options.model.path = path;
    options.model.threads = options.answer.threads;
    const EvalModel model = open_model(options.model);
    const Predictions predictions = answer(model, cases, options.answer);
    if (!options.predictions.empty()) {
      write_predictions(options.predictions, saved_predictions(cases, predictions));
    }
    reports.push_back(
        score_predictions(cases, predictions, std::max(options.keep_failures, options.failures)));
    names.push_back(model.name);
  }

  Json json = {{"data", options.data.file},        {"constrain", options.answer.constrain},
               {"ground", options.answer.ground},  {"max_gen_len", options.answer.max_gen_len},
               {"kernels", options.model.kernels}, {"embedding", options.model.embedding},
               {"models", Json::array()}};
  std::vector<NamedReport> columns;
  for (std::size_t i = 0; i < reports.size(); ++i) {
    json["models"].push_back({{"model", options.models[i]}, {"report", to_json(reports[i])}});
    columns.emplace_back(names[i], &reports[i]);
  }
  if (!options.output.empty()) {
    write_json_file(options.output, json);
  }
  if (options.json) {
    std::cout << json.dump() << std::endl;
    return;
  }
  const TableStyle style = table_style(options.markdown);
  std::cout << figures_table(columns, style) << "\n" << tools_table(columns, style);
  for (const auto& [name, report] : columns) {
    std::cout << "\n";
    if (columns.size() > 1) {
      std::cout << name << "\n";
    }
    std::cout << buckets_table(*report, style);
    if (const std::string text = failures_text(*report, options.failures); !text.empty()) {
      std::cout << "\n" << text;
    }
  }
  std::cout << std::flush;
}

struct RetrievalOptions {
  EvalModelOptions model;
  DataOptions data;
  bool markdown = false;
  bool json = false;
};

void retrieval(const RetrievalOptions& options) {
  const std::vector<EvalCase> cases = read_cases(options.data);
  const EvalModel model = open_model(options.model);
  Progress progress(model.name, cases.size(), "queries");
  const RetrievalCounts counts = evaluate_retrieval(*model.engine, *model.tokenizer, cases,
                                                    {.json_escapes = model.prompt.json_escapes},
                                                    [&](std::size_t done) { progress.set(done); });
  if (counts.queries == 0) {
    throw DataError(format("{}: no row calls a tool that it offers", options.data.file));
  }
  if (options.json) {
    std::cout << to_json(counts).dump() << std::endl;
  } else {
    std::cout << retrieval_table(counts, table_style(options.markdown)) << std::flush;
  }
}

struct CompareOptions {
  std::string a;
  std::string b;
  EvalModelOptions model;
  DataOptions data;
  AnswerOptions answer;
  double min_agreement = 0;
  std::size_t show = 3;
  bool markdown = false;
  bool json = false;
};

std::vector<SavedPrediction> answers_of(const std::string& source, const CompareOptions& options,
                                        std::span<const EvalCase> cases) {
  if (std::filesystem::path(source).extension() == ".jsonl") {
    return read_predictions(source);
  }
  EvalModelOptions model_options = options.model;
  model_options.path = source;
  model_options.threads = options.answer.threads;
  if (std::filesystem::path(source).extension() == ".needle") {
    model_options.kernels = model_options.embedding = "none";
  }
  return saved_predictions(cases, answer(open_model(model_options), cases, options.answer));
}

void compare(const CompareOptions& options) {
  const auto is_file = [](const std::string& source) {
    return std::filesystem::path(source).extension() == ".jsonl";
  };
  std::vector<EvalCase> cases;
  if (!is_file(options.a) || !is_file(options.b)) {
    if (options.data.file.empty()) {
      throw ConfigError(
          "--data is missing: a model needs rows to answer. Two files of saved predictions "
          "(needle-eval calls --predictions a.jsonl) need none");
    }
    cases = read_cases(options.data);
  }
  const std::vector<SavedPrediction> a = answers_of(options.a, options, cases);
  const std::vector<SavedPrediction> b = answers_of(options.b, options, cases);
  const Comparison comparison = compare_predictions(a, b);
  if (options.json) {
    Json json = to_json(comparison);
    json["a"] = options.a;
    json["b"] = options.b;
    std::cout << json.dump() << std::endl;
  } else {
    std::cout << comparison_table(comparison, options.a, options.b, table_style(options.markdown));
    for (std::size_t i = 0; i < std::min(options.show, comparison.disagreements.size()); ++i) {
      const std::size_t index = comparison.disagreements[i];
      std::cout << format("\n[{}] {}\n  expected  {}\n  {}  {}\n  {}  {}\n", index + 1,
                          a[index].query, a[index].reference, options.a, a[index].text, options.b,
                          b[index].text);
    }
    std::cout << std::flush;
  }
  const double agreement = 100.0 * static_cast<double>(comparison.same_tokens) /
                           static_cast<double>(std::max<std::int64_t>(1, comparison.cases));
  if (agreement < options.min_agreement) {
    throw Error(
        format("{:.2f} % of the answers agree token for token, less than the {:.2f} % asked "
               "for with --min-agreement",
               agreement, options.min_agreement));
  }
}

}  // namespace

void add_calls_command(CLI::App& app) {
  auto options = std::make_shared<CallsOptions>();
  auto* command = app.add_subcommand("calls",
                                     "How many function calls are right, and what is wrong "
                                     "with the others");
  command
      ->add_option("--model", options->models,
                   ".needle file, checkpoint or run folder, needle.pkl; several are shown side by "
                   "side")
      ->required();
  add_data_options(*command, options->data, /*required=*/true);
  add_answer_options(*command, options->answer);
  add_model_options(*command, options->model);
  command->add_option("--failures", options->failures, "Wrong answers to show in full")
      ->capture_default_str();
  command->add_option("--keep-failures", options->keep_failures, "Wrong answers in the JSON report")
      ->capture_default_str();
  command->add_option("--output", options->output, "Write the report as JSON to this file");
  command->add_option("--predictions", options->predictions,
                      "Write every answer to this JSONL file, for needle-eval compare");
  command->add_flag("--markdown", options->markdown, "Tables in Markdown");
  command->add_flag("--json", options->json, "Print the report as JSON");
  command->footer(
      "Strict figures compare calls as JSON, order aside; 5, 5.0 and \"5\" differ. \"loosely\"\n"
      "forgives spelling: letter case, number texts, a leading \"at\". Output that is no call "
      "list\n"
      "counts as wrong.\n"
      "  needle-eval calls --model model.needle --data test.jsonl --failures 10\n"
      "  needle-eval calls --model runs/base --model runs/mine --data test.jsonl --markdown\n"
      "  needle-eval calls --model runs/mine --kernels int4 --data test.jsonl --output "
      "report.json");
  command->callback([options] { calls(*options); });
}

void add_retrieval_command(CLI::App& app) {
  auto options = std::make_shared<RetrievalOptions>();
  auto* command = app.add_subcommand(
      "retrieval", "How well the contrastive head finds the right tool among those of each row");
  command
      ->add_option("--model", options->model.path,
                   ".needle file, checkpoint or run folder, needle.pkl")
      ->required();
  add_data_options(*command, options->data, /*required=*/true);
  add_model_options(*command, options->model);
  command->add_flag("--markdown", options->markdown, "Table in Markdown");
  command->add_flag("--json", options->json, "Print the figures as JSON");
  command->footer(
      "recall@k: share of queries with a right tool among the first k. Rows without a call do not "
      "count.\n"
      "  needle-eval retrieval --model model.needle --data test.jsonl");
  command->callback([options] { retrieval(*options); });
}

void add_compare_command(CLI::App& app) {
  auto options = std::make_shared<CompareOptions>();
  auto* command = app.add_subcommand(
      "compare", "Do two models answer alike, and is one better by more than chance");
  command
      ->add_option("a", options->a, "A model, or answers saved with calls --predictions (.jsonl)")
      ->required();
  command->add_option("b", options->b, "The other one")->required();
  add_data_options(*command, options->data, /*required=*/false);
  add_answer_options(*command, options->answer);
  add_model_options(*command, options->model);
  command
      ->add_option("--min-agreement", options->min_agreement,
                   "Exit code 1 if fewer percent of the answers agree token for token")
      ->check(CLI::Range(0.0, 100.0));
  command->add_option("--show", options->show, "Differing answers to show")->capture_default_str();
  command->add_flag("--markdown", options->markdown, "Table in Markdown");
  command->add_flag("--json", options->json, "Print the comparison as JSON");
  command->footer(
      "The p value is McNemar's exact test on the answers that only one of the two has right; the\n"
      "interval is a paired bootstrap. --kernels and --embedding apply to checkpoints.\n"
      "  needle-eval compare before.jsonl after.jsonl\n"
      "  needle-eval compare runs/mine model.needle --data test.jsonl --kernels int4 --embedding "
      "int4 --min-agreement 99");
  command->callback([options] { compare(*options); });
}

}  // namespace needle
