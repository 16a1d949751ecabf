// needle-export: from a trained checkpoint to the file that is deployed, and between the formats.
#include <cstdint>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "needle/calls/tool_name.h"
#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/data/jsonl_reader.h"
#include "needle/export/export_weights.h"
#include "needle/export/needle_rs.h"
#include "needle/model/released_checkpoint.h"
#include "needle/quant/embedded_file.h"
#include "needle/text/prompt.h"
#include "needle/train/checkpoint_folder.h"
#include "needle/train/saved_model.h"

#include "apps/cli.h"
#include "apps/needle_export/inspect.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

WeightEncoding parse_encoding(std::string_view flag, const std::string& text) {
  const auto encoding = kWeightEncodingNames.parse(text);
  if (!encoding) {
    throw ConfigError(format("{} {}: expected one of {}", flag, text, kWeightEncodingNames.list()));
  }
  return *encoding;
}

struct ExportCommand {
  std::string format = "needle";
  std::string checkpoint;
  std::string tokenizer;
  std::string output;
  std::string kernels{kWeightEncodingNames.name(ExportSettings{}.kernels)};
  std::string embedding{kWeightEncodingNames.name(ExportSettings{}.embedding)};
  std::string verify_data;
  std::int64_t verify_rows = 16;
  VerifyOptions verify;
  bool json = false;
};

// The prompts that serving would make of the rows.
std::vector<std::vector<TokenId>> prompts_of(const fs::path& rows, std::int64_t count,
                                             const SavedModel& saved) {
  std::vector<std::vector<TokenId>> prompts;
  const auto add = [&](const CallExample& example) {
    const NormalizedTools tools =
        normalize_tool_names(example.tools, NameStyle::kUnique, saved.prompt.json_escapes);
    prompts.push_back(
        encode_prompt(saved.tokenizer, saved.prompt, example.query, tools.tools_json).ids);
  };
  for_each_call_example(rows, add, {.max_rows = count});
  if (prompts.empty()) {
    throw DataError(format("{}: no rows to verify with", rows));
  }
  return prompts;
}

// Where the weights come from, without paths of this machine.
Json provenance_of(const SavedModel& saved) {
  Json provenance{{"program", "needle-export"},
                  {"source", saved.source.filename().string()},
                  {"tokenizer_sha256", saved.tokenizer.fingerprint()}};
  const fs::path weights =
      fs::is_directory(saved.source) ? saved.source / "model.safetensors" : saved.source;
  provenance["weights_sha256"] = sha256_file(weights);
  if (fs::exists(saved.source / "state.json")) {
    const Json state = read_json_file(saved.source / "state.json");
    for (const char* key : {"step", "epoch"}) {
      if (state.contains(key)) {
        provenance[key] = state.at(key);
      }
    }
  }
  return provenance;
}

// needle.safetensors and vocab.txt in a folder.
void export_for_needle_rs(const ExportCommand& options) {
  const SavedModel saved = load_saved_model(options.checkpoint, options.tokenizer);
  AtomicDirectory folder{fs::path(options.output)};
  export_needle_rs(saved.model, saved.tokenizer, saved.prompt, folder.temporary_path());
  folder.commit();
  const Json line{{"format", "needle-rs"},
                  {"weights", (fs::path(options.output) / "needle.safetensors").string()},
                  {"vocabulary", (fs::path(options.output) / "vocab.txt").string()}};
  std::cout << (options.json
                    ? line.dump()
                    : format("written: {}/needle.safetensors and vocab.txt", options.output))
            << std::endl;
}

void export_checkpoint(const ExportCommand& options) {
  if (options.format == "needle-rs") {
    export_for_needle_rs(options);
    return;
  }
  const ExportSettings settings{.kernels = parse_encoding("--kernels", options.kernels),
                                .embedding = parse_encoding("--embedding", options.embedding)};
  if (options.verify_rows < 1 || options.verify.max_tokens < 1) {
    throw ConfigError("--verify-rows and --verify-tokens: expected at least 1");
  }
  const SavedModel saved = load_saved_model(options.checkpoint, options.tokenizer);
  VerifyOptions verify = options.verify;
  if (!options.verify_data.empty()) {
    verify.prompts = prompts_of(options.verify_data, options.verify_rows, saved);
  }
  const VerifyReport report =
      export_verified(saved.model, saved.tokenizer, saved.prompt, provenance_of(saved), settings,
                      verify, options.output);
  if (options.json) {
    Json line = to_json(report);
    line["output"] = options.output;
    std::cout << line.dump() << std::endl;
  } else {
    std::cout << report.text() << "\nwritten: " << options.output << std::endl;
  }
}

void write_checkpoint(const std::string& output, const Needle& model, const Tokenizer& tokenizer,
                      const PromptConfig& prompt) {
  AtomicDirectory folder{fs::path(output)};
  write_saved_model(folder.temporary_path(), model, tokenizer, prompt);
  write_manifest(folder.temporary_path());
  folder.commit();
  std::cout << format("{} parameters in {}\n", model->config().parameter_count(), output);
}

// A folder with needle-rs's two files, or its weights with vocab.txt beside them.
void import_from_needle_rs(const fs::path& source, const std::string& vocabulary,
                           const std::string& output) {
  const fs::path weights = fs::is_directory(source) ? source / "needle.safetensors" : source;
  const ImportedModel imported = import_needle_rs(
      weights, vocabulary.empty() ? weights.parent_path() / "vocab.txt" : fs::path(vocabulary));
  if (!imported.has_contrastive_head) {
    std::cerr << format("warning: {}: no contrastive head; tool retrieval will not work\n",
                        weights);
  }
  write_checkpoint(output, imported.model, imported.tokenizer, imported.prompt);
}

void import_pickle(const std::string& pickle, const std::string& tokenizer,
                   const std::string& output) {
  if (fs::is_directory(pickle) || fs::path(pickle).extension() == ".safetensors") {
    import_from_needle_rs(pickle, tokenizer, output);
    return;
  }
  const SavedModel saved = load_saved_model(pickle, tokenizer);
  write_checkpoint(output, saved.model, saved.tokenizer, saved.prompt);
}

void write_pickle_checkpoint(const std::string& checkpoint, const std::string& output) {
  const SavedModel saved = load_saved_model(checkpoint);
  save_released_checkpoint(saved.model, output);
  const fs::path tokenizer = fs::path(output).replace_extension(".model");
  write_file_atomic(tokenizer, saved.tokenizer.model_bytes());
  std::cout << format("{} and its tokenizer {}\n", output, tokenizer.string());
}

void add_export_command(CLI::App& app) {
  auto options = std::make_shared<ExportCommand>();
  auto* command =
      app.add_subcommand("export", "Write a .needle file and prove that it computes the same");
  command
      ->add_option("checkpoint", options->checkpoint, "Checkpoint or run folder, or a needle.pkl")
      ->required();
  command->add_option("-o,--output", options->output, "The .needle file; a folder for needle-rs")
      ->required();
  command
      ->add_option("--format", options->format,
                   "needle; needle-rs: needle.safetensors and vocab.txt for that runtime, INT4")
      ->check(CLI::IsMember({"needle", "needle-rs"}))
      ->capture_default_str();
  command->add_option("--tokenizer", options->tokenizer,
                      "SentencePiece model, for a needle.pkl without one beside it");
  command->add_option("--kernels", options->kernels, "Dense kernels: int4, int8 or f32")
      ->capture_default_str();
  command->add_option("--embedding", options->embedding, "Embedding: int4, int8 or f32")
      ->capture_default_str();
  command->add_option("--verify-data", options->verify_data,
                      "JSONL whose rows are the prompts compared; without it random tokens");
  command->add_option("--verify-rows", options->verify_rows, "How many rows")
      ->capture_default_str();
  command->add_option("--verify-tokens", options->verify.max_tokens, "Greedy tokens a prompt")
      ->capture_default_str();
  command
      ->add_option("--tolerance", options->verify.tolerance,
                   "Largest relative difference of a logit")
      ->capture_default_str();
  command->add_flag("--json", options->json, "One JSON object for machines");
  command->callback([options] { export_checkpoint(*options); });
}

void add_import_command(CLI::App& app) {
  struct Options {
    std::string pickle, tokenizer, output;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("import",
                                     "Turn a published needle.pkl (nothing in it is executed) or "
                                     "needle-rs files into a checkpoint");
  command
      ->add_option("source", options->pickle,
                   "needle.pkl; or a folder with needle-rs's needle.safetensors and vocab.txt")
      ->required();
  command->add_option("--tokenizer", options->tokenizer,
                      "Its SentencePiece model; default: needle.model beside it; for needle-rs "
                      "vocab.txt");
  command->add_option("-o,--output", options->output, "Checkpoint folder to make")->required();
  command->callback(
      [options] { import_pickle(options->pickle, options->tokenizer, options->output); });
}

void add_pickle_command(CLI::App& app) {
  struct Options {
    std::string checkpoint, output;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "pickle", "Write a checkpoint as a needle.pkl that the published program loads");
  command->add_option("checkpoint", options->checkpoint, "Checkpoint or run folder")->required();
  command
      ->add_option("-o,--output", options->output,
                   "needle.pkl to write; its tokenizer lands "
                   "beside it")
      ->required();
  command->callback([options] { write_pickle_checkpoint(options->checkpoint, options->output); });
}

void add_embed_command(CLI::App& app) {
  struct Options {
    std::string file, output, name;
    std::string machine{kObjectMachineNames.name(ObjectMachine::kX86_64)};
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand(
      "embed", "Make a .needle file a part of a program: C source or an object file");
  command->add_option("file", options->file, "The .needle file")->required();
  command
      ->add_option("-o,--output", options->output,
                   "model.c or model.o; a header lands beside it. Loaded by "
                   "needle_model_load_memory or LoadedModel::load_memory, where it lies")
      ->required();
  command->add_option("--name", options->name, "Name in C (default: the file's)");
  command->add_option("--machine", options->machine, "Of an object: x86-64, aarch64, arm, riscv64")
      ->capture_default_str();
  command->callback([options] {
    const auto machine = kObjectMachineNames.parse(options->machine);
    const std::string extension = fs::path(options->output).extension().string();
    if (!machine || (extension != ".c" && extension != ".o")) {
      throw ConfigError(
          format("embed: --machine {} and --output {}: expected one of {} and a file "
                 "that ends in .c or .o",
                 options->machine, options->output, kObjectMachineNames.list()));
    }
    const std::string name = options->name.empty() ? symbol_of(options->file) : options->name;
    if (extension == ".c") {
      write_c_source(options->file, options->output, name);
    } else {
      write_object(options->file, options->output, name, *machine);
    }
    std::cout << format("{}: {} and {}_size\n", options->output, name, name);
  });
}

void add_inspect_command(CLI::App& app) {
  struct Options {
    std::string path;
    bool json = false;
  };
  auto options = std::make_shared<Options>();
  auto* command = app.add_subcommand("inspect", "Say what a file or a checkpoint folder holds");
  command->add_option("path", options->path, "Any file of ours, safetensors or a pickle")
      ->required();
  command->add_flag("--json", options->json, "As JSON");
  command->callback([options] {
    const Json inspection = inspect(options->path);
    std::cout << (options->json ? inspection.dump(1) + "\n" : inspection_text(inspection))
              << std::flush;
  });
}

}  // namespace
}  // namespace needle

int main(int argc, char** argv) {
  CLI::App app{"Deploy checkpoints, convert and inspect them.", "needle-export"};
  app.require_subcommand(1);
  app.footer(
      "The file that needle-run serves, from a training run:\n"
      "  needle-export export runs/mine -o model.needle --verify-data rows.jsonl\n"
      "The published weights as a checkpoint to finetune, and back:\n"
      "  needle-export import needle.pkl --tokenizer needle.model -o checkpoints/base\n"
      "  needle-export pickle runs/mine -o mine.pkl\n"
      "For needle-rs, and from it:\n"
      "  needle-export export runs/mine --format needle-rs -o folder\n"
      "  needle-export import folder -o checkpoints/base\n"
      "A model inside a program:\n"
      "  needle-export embed model.needle -o model.c\n"
      "What is in there:\n"
      "  needle-export inspect model.needle\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage.");
  needle::add_export_command(app);
  needle::add_import_command(app);
  needle::add_pickle_command(app);
  needle::add_embed_command(app);
  needle::add_inspect_command(app);
  return needle::run_command(app, argc, argv);
}
