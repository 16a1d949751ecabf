#include "apps/needle_data/commands.h"

#include <algorithm>
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/core/progress.h"
#include "needle/core/thread_pool.h"
#include "needle/data/check.h"
#include "needle/data/jsonl_reader.h"
#include "needle/data/prepare.h"
#include "needle/data/split.h"
#include "needle/synth/generator.h"
#include "needle/text/tokenizer.h"
#include "needle/text/tokenizer_trainer.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

// Prints `report` as one JSON line for machines, or as text for people.
void print_report(bool as_json, const Json& report, const std::string& text) {
  std::cout << (as_json ? report.dump() : text) << std::endl;
}

template <typename Enum>
Enum parse_enum(std::string_view flag, const std::string& text) {
  const auto value = EnumTable<Enum>::value.parse(text);
  if (!value) {
    throw ConfigError(
        format("{} {}: expected one of {}", flag, text, EnumTable<Enum>::value.list()));
  }
  return *value;
}

struct SynthOptions {
  std::string tools;
  std::string kind = "calls";
  std::string values = "all";
  std::string output;
  std::uint64_t count = 2000;
  std::uint64_t first = 0;
  SynthConfig config;
  bool json = false;
};

void synth(SynthOptions options) {
  options.config.values = parse_enum<ValuePool>("--values", options.values);
  options.config.validate();
  AtomicFileWriter file{fs::path(options.output)};
  Progress progress("making rows", options.count, "rows");
  if (options.kind == "calls") {
    if (options.tools.empty()) {
      throw ConfigError("--tools is missing: give the JSON file that lists the tools");
    }
    const RowGenerator generator(parse_tools_text(read_file(options.tools)), options.config);
    for (std::uint64_t i = 0; i < options.count; ++i) {
      file.write(generator.row(options.first + i).to_jsonl() + "\n");
      progress.advance();
    }
  } else {
    for (std::uint64_t i = 0; i < options.count; ++i) {
      file.write(synth_text_row(options.config, options.first + i).to_jsonl() + "\n");
      progress.advance();
    }
  }
  file.commit();
  print_report(options.json, {{"output", options.output}, {"rows", options.count}},
               format("{} rows in {}", options.count, options.output));
}

struct CheckCommandOptions {
  std::string file;
  std::string tokenizer;
  bool json = false;
};

void check(const CheckCommandOptions& options) {
  CheckOptions settings;
  if (!options.tokenizer.empty()) {
    settings.tokenizer = Tokenizer::load(options.tokenizer);
  }
  const CheckReport report = check_calls_file(options.file, settings);
  print_report(options.json, report.to_json(), report.text());
  if (!report.ok()) {
    throw DataError(format("{}: some rows cannot be trained on; see the list", options.file));
  }
}

struct SplitOptions {
  std::string file;
  std::string output;
  SplitConfig config;
  bool json = false;
};

void split(const SplitOptions& options) {
  const std::vector<CallExample> examples = read_call_examples(options.file);
  if (examples.empty()) {
    throw DataError(format("{}: no rows to split", options.file));
  }
  const Split parts = split_by_tool(examples, options.config);
  fs::create_directories(options.output);
  const auto write_part = [&](const char* name, const std::vector<std::int64_t>& indices) {
    AtomicFileWriter file(fs::path(options.output) / name);
    for (const CallExample& example : select_examples(examples, indices)) {
      file.write(to_jsonl(example));
    }
    file.commit();
  };
  write_part("train.jsonl", parts.train);
  write_part("valid.jsonl", parts.validation);
  write_part("test.jsonl", parts.test);
  for (const std::string& warning : parts.warnings) {
    std::cerr << "warning: " << warning << "\n";
  }
  print_report(options.json,
               {{"output", options.output},
                {"train", parts.train.size()},
                {"valid", parts.validation.size()},
                {"test", parts.test.size()},
                {"warnings", parts.warnings}},
               format("{}: train.jsonl {}, valid.jsonl {}, test.jsonl {} rows", options.output,
                      parts.train.size(), parts.validation.size(), parts.test.size()));
}

struct PrepareOptions {
  std::vector<std::string> files;
  std::string tokenizer;
  std::string cache = ".cache/datasets";
  std::vector<std::string> overrides;
  std::string kind = "calls";
  bool json = false;
};

void prepare(const PrepareOptions& options) {
  PrepareConfig config;
  config.kind = parse_enum<RowKind>("--kind", options.kind);
  for (const std::string& assignment : options.overrides) {
    apply_override(config, assignment);
  }
  const Tokenizer tokenizer = Tokenizer::load(options.tokenizer);
  const std::vector<fs::path> inputs(options.files.begin(), options.files.end());
  ThreadPool pool;
  Progress progress("encoding", 0, "rows");
  const PreparedDataset prepared =
      prepare_dataset(inputs, tokenizer, config, options.cache, pool,
                      [&](std::int64_t rows) { progress.set(static_cast<std::uint64_t>(rows)); });
  const PackedDataset& dataset = prepared.dataset;
  Json report{{"path", prepared.path.string()},
              {"reused", prepared.reused},
              {"rows", dataset.row_count()},
              {"examples", dataset.example_count()},
              {"source_tokens", dataset.source_tokens()},
              {"target_tokens", dataset.target_tokens()},
              {"info", to_json(dataset.info())}};
  print_report(options.json, report,
               format("{} ({}): {} examples in {} rows, {} encoder and {} decoder tokens",
                      prepared.path, prepared.reused ? "reused" : "made", dataset.example_count(),
                      dataset.row_count(), dataset.source_tokens(), dataset.target_tokens()));
}

struct TrainTokenizerOptions {
  std::vector<std::string> files;
  std::string output;
  std::vector<std::string> overrides;
  bool json = false;
};

void train_tokenizer_command(const TrainTokenizerOptions& options) {
  TokenizerTrainerConfig config;
  for (const std::string& assignment : options.overrides) {
    apply_override(config, assignment);
  }
  std::vector<std::string> lines;
  for (const std::string& file : options.files) {
    for_each_text(file, [&lines](std::string_view text) { lines.emplace_back(text); });
  }
  const TrainedTokenizer trained = train_tokenizer(lines, config);
  write_file_atomic(options.output, trained.tokenizer.model_bytes());
  print_report(
      options.json,
      {{"output", options.output},
       {"vocab_size", trained.tokenizer.vocab_size()},
       {"lines", trained.lines},
       {"long_lines", trained.long_lines},
       {"fingerprint", trained.tokenizer.fingerprint()}},
      format("{}: {} pieces from {} lines; {} lines left out because they are longer than {} bytes",
             options.output, trained.tokenizer.vocab_size(), trained.lines, trained.long_lines,
             config.max_line_bytes));
}

}  // namespace

void add_synth_command(CLI::App& app) {
  auto options = std::make_shared<SynthOptions>();
  auto* command = app.add_subcommand(
      "synth", "Make function-call rows from a list of tools, seeded, without a network");
  command
      ->add_option("--tools", options->tools,
                   "JSON file with the tools (flat, JSON Schema, OpenAI or MCP style)")
      ->check(CLI::ExistingFile);
  command->add_option("-n,--count", options->count, "Rows to make")->capture_default_str();
  command->add_option("-o,--output", options->output, "JSONL file to write")->required();
  command
      ->add_option("--kind", options->kind,
                   "calls, or pretrain for plain text rows that teach copying")
      ->check(CLI::IsMember({"calls", "pretrain"}))
      ->capture_default_str();
  command->add_option("--seed", options->config.seed, "Row i follows from the seed and i alone")
      ->capture_default_str();
  command->add_option("--first", options->first, "Index of the first row")->capture_default_str();
  command
      ->add_option("--values", options->values,
                   "Values to draw: train and test share none, all is both")
      ->check(CLI::IsMember({"all", "train", "test"}))
      ->capture_default_str();
  command->add_option("--min-tools", options->config.min_tools, "Fewest tools on offer a row")
      ->capture_default_str();
  command->add_option("--max-tools", options->config.max_tools, "Most tools on offer a row")
      ->capture_default_str();
  command
      ->add_option("--no-call-share", options->config.no_call_share,
                   "Share of rows that no tool serves")
      ->capture_default_str();
  command
      ->add_option("--multi-call-share", options->config.multi_call_share,
                   "Share of rows with two or three calls")
      ->capture_default_str();
  command
      ->add_option("--optional-share", options->config.optional_share,
                   "How often an optional parameter is mentioned (tools without templates)")
      ->capture_default_str();
  command->add_flag("--json", options->json, "Print the result as JSON");
  command->footer(
      "A tool may carry \"templates\", ways to ask for it: [\"wake me at {time}\"]. Example:\n"
      "  needle-data synth --tools tools.json -n 2000 --values train -o train.jsonl\n"
      "  needle-data synth --tools tools.json -n 200 --values test --seed 7 -o test.jsonl");
  command->callback([options] { synth(*options); });
}

void add_check_command(CLI::App& app) {
  auto options = std::make_shared<CheckCommandOptions>();
  auto* command = app.add_subcommand(
      "check", "Tell what is wrong with a JSONL file before anybody trains on it");
  command->add_option("file", options->file, "JSONL file of function-call rows, plain or gzip")
      ->required();
  command->add_option("--tokenizer", options->tokenizer,
                      "SentencePiece model: lengths are checked too");
  command->add_flag("--json", options->json, "Print the report as JSON");
  command->footer(
      "Exit code 1 if a row cannot be trained on. Values that do not occur in the query are "
      "hints.");
  command->callback([options] { check(*options); });
}

void add_split_command(CLI::App& app) {
  auto options = std::make_shared<SplitOptions>();
  auto* command =
      app.add_subcommand("split", "Split rows per tool into train, validation and test");
  command->add_option("file", options->file, "JSONL file of function-call rows, plain or gzip")
      ->required();
  command
      ->add_option("-o,--output", options->output,
                   "Folder for train.jsonl, valid.jsonl, test.jsonl")
      ->required();
  command
      ->add_option("--validation", options->config.validation_per_tool,
                   "Validation rows a tool, at most")
      ->capture_default_str();
  command->add_option("--test", options->config.test_per_tool, "Test rows a tool, at most")
      ->capture_default_str();
  command->add_option("--seed", options->config.seed, "Which rows go where")->capture_default_str();
  command->add_flag("--json", options->json, "Print the sizes as JSON");
  command->callback([options] { split(*options); });
}

void add_prepare_command(CLI::App& app) {
  auto options = std::make_shared<PrepareOptions>();
  auto* command = app.add_subcommand(
      "prepare", "Encode and pack rows into a data set; reuses what is unchanged");
  command->add_option("files", options->files, "JSONL files, plain or gzip")->required();
  command->add_option("--tokenizer", options->tokenizer, "SentencePiece model")->required();
  command->add_option("--kind", options->kind, "calls or pretrain")
      ->check(CLI::IsMember({"calls", "pretrain"}))
      ->capture_default_str();
  command->add_option("--cache", options->cache, "Folder of data sets, named by content")
      ->capture_default_str();
  command->add_option("--set", options->overrides,
                      "Change a setting: prompt.max_enc_len=512, pack=false, ...");
  command->add_flag("--json", options->json, "Print the result as JSON");
  command->footer(
      "The trainer does this by itself; run it to see sizes, or to prepare on another machine.");
  command->callback([options] { prepare(*options); });
}

void add_train_tokenizer_command(CLI::App& app) {
  auto options = std::make_shared<TrainTokenizerOptions>();
  auto* command = app.add_subcommand("train-tokenizer",
                                     "Train a SentencePiece tokenizer on the texts of JSONL files");
  command->add_option("files", options->files, "JSONL files of any kind of row, plain or gzip")
      ->required();
  command
      ->add_option("-o,--output", options->output,
                   "Model file to write, for example tokenizer.model")
      ->required();
  command->add_option("--set", options->overrides,
                      "Change a setting: vocab_size=4096, json_symbols=[\"default\"], ...");
  command->add_flag("--json", options->json, "Print the result as JSON");
  command->callback([options] { train_tokenizer_command(*options); });
}

}  // namespace needle
