// needle-run: answers queries from a .needle file. No LibTorch in this program.
#include <filesystem>
#include <iostream>

#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/core/file.h"

#include "apps/cli.h"
#include "apps/needle_run/commands.h"
#include "apps/needle_run/random_weights.h"

namespace needle {

void ModelOptions::add_to(CLI::App& command) {
  command.add_option("-m,--model", model, "Weights file (.needle), made by needle-export")
      ->envname("NEEDLE_MODEL");
  command.add_option("--random-weights", random_weights,
                     "Instead of a model: random weights of this shape (configs/model/*.json)");
  command.add_option("--threads", threads, "Threads; 0: one per core")->capture_default_str();
  command
      .add_option("--numerics", numerics,
                  "mixed: 16-bit activations where they matter, 8-bit elsewhere; int8: faster; "
                  "int16: nearer to float; float: token for token as LibTorch")
      ->check(CLI::IsMember({"mixed", "int8", "int16", "float"}))
      ->capture_default_str();
  command.add_flag("--skip-checksums", skip_checksums,
                   "Trust the file: do not read all of it to check it");
}

runtime::LoadedModel ModelOptions::load() const {
  const runtime::LoadOptions options{.threads = threads,
                                     .verify_checksums = !skip_checksums,
                                     .numerics = *runtime::kNumericsNames.parse(numerics)};
  if (!random_weights.empty()) {
    // A model may be named by the environment, too: the option is the nearer wish.
    return runtime::LoadedModel::load(RandomWeights(random_weights).path(), options);
  }
  if (model.empty()) {
    throw ConfigError("--model is missing: give a .needle file (or set NEEDLE_MODEL)");
  }
  return runtime::LoadedModel::load(model, options);
}

namespace {
bool is_inlined(const std::string& argument) {
  const std::size_t first = argument.find_first_not_of(" \t\r\n");
  return first != std::string::npos && (argument[first] == '[' || argument[first] == '{');
}
}  // namespace

std::string read_schema(const std::string& argument) {
  return argument.empty() || is_inlined(argument) ? argument : read_file(argument);
}

std::string read_tools(const std::string& argument) {
  if (argument.empty()) {
    return "[]";
  }
  const bool inlined = is_inlined(argument);
  const std::string text = inlined ? argument : read_file(argument);
  try {
    parse_tools_text(text);
  } catch (const DataError& error) {
    throw DataError(format("{}: {}", inlined ? "--tools" : argument, error.what()));
  }
  return text;
}

bool next_query(std::string& query) {
  while (std::getline(std::cin, query)) {
    if (query.find_first_not_of(" \t\r") != std::string::npos) {
      if (query.back() == '\r') {
        query.pop_back();
      }
      return true;
    }
  }
  return false;
}

}  // namespace needle

int main(int argc, char** argv) {
  CLI::App app{"Turn queries into function calls with a .needle file.", "needle-run"};
  app.require_subcommand(0, 1);
  app.footer(
      "One query, the answer on stdout:\n"
      "  needle-run --model model.needle --tools tools.json --query \"Wake me at 7\"\n"
      "Many queries, one a line, one JSON object a line back:\n"
      "  needle-run --model model.needle --tools tools.json --json < queries.txt\n"
      "Which tools fit, best first:\n"
      "  needle-run retrieve --model model.needle --tools tools.json --query \"Wake me at 7\"\n"
      "How fast it is here:\n"
      "  needle-run bench --model model.needle\n"
      "Tools: a JSON array; parameters flat ({\"time\": {\"type\": \"string\"}}) or JSON Schema.\n"
      "NEEDLE_ISA=scalar|generic|avx2|avx512|avx512vnni|avx512amx forces one set of kernels.\n"
      "Exit codes: 0 done, 1 failed, 2 wrong usage.");
  needle::add_generate(app);
  needle::add_retrieve_command(app);
  needle::add_bench_command(app);
  return needle::run_command(app, argc, argv);
}
