#include "needle/train/finetune_bundle.h"

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/data/jsonl_reader.h"
#include "needle/eval/report.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

void write_examples(const fs::path& path, std::span<const CallExample> examples) {
  std::string text;
  for (const CallExample& example : examples) {
    text += to_jsonl(example);
  }
  write_file_atomic(path, text);
}

std::string report_text(const BundleContents& contents) {
  std::string text = format(
      "# Finetuning report\n\n"
      "Base: `{}`. Training: {} examples, {} steps, {:.0f} s, {:.0f} tokens/s. Validation: {} "
      "examples, test: {} "
      "examples;\nneither was trained on. Answers are greedy, with tool names and argument keys "
      "constrained to those "
      "declared.\n\n## Base against finetuned, on the test split\n\n",
      contents.base_name, contents.data.train.size(), contents.summary.steps,
      contents.summary.seconds, contents.summary.tokens_per_second, contents.data.validation.size(),
      contents.data.test.size());
  text += comparison_text(contents.base, contents.finetuned, /*markdown=*/true);
  text += "\n## By number of calls and tools\n\n" +
          buckets_table(contents.finetuned, TableStyle::kMarkdown);
  text += "\n## What is still wrong\n\n```\n" + failures_text(contents.finetuned, 10) + "```\n";
  if (!contents.data.split.warnings.empty()) {
    text += "\n## Warnings about the data\n\n";
    for (const std::string& warning : contents.data.split.warnings) {
      text += format("- {}\n", warning);
    }
  }
  return text;
}

std::string readme_text(const BundleContents& contents) {
  return format(
      "# A finetuned Needle model\n\n"
      "Exact match on {} held-out requests: {:.1f} %.{} See [report.md](report.md).\n\n"
      "| file | what |\n| --- | --- |\n"
      "| `model.safetensors`, `model.json`, `tokenizer.model` | the checkpoint |\n"
      "| `tools.json` | every tool that the data offers |\n"
      "| `train.jsonl`, `validation.jsonl`, `test.jsonl` | the data as it was split |\n"
      "| `report.json`, `report.md` | both evaluations |\n\n"
      "Export it to INT4 and ask it, from this folder:\n\n"
      "```\nneedle-export export . -o model.needle\n"
      "needle-run --model model.needle --tools tools.json --query \"{}\"\n```\n",
      contents.data.test.size(), 100.0 * contents.finetuned.strict.exact.ratio(),
      contents.base
          ? format(" Before finetuning: {:.1f} %.", 100.0 * contents.base->strict.exact.ratio())
          : "",
      contents.data.test.empty() ? std::string("...") : contents.data.test.front().query);
}

}  // namespace

std::string comparison_text(const std::optional<CallReport>& base, const CallReport& finetuned,
                            bool markdown) {
  const TableStyle style = markdown ? TableStyle::kMarkdown : TableStyle::kText;
  std::vector<NamedReport> reports;
  if (base) {
    reports.emplace_back("base", &*base);
  }
  reports.emplace_back("finetuned", &finetuned);
  return figures_table(reports, style) + "\n" + tools_table(reports, style);
}

void write_bundle(const fs::path& folder, const BundleContents& contents) {
  AtomicDirectory directory(folder);
  const fs::path& target = directory.temporary_path();
  write_saved_model(target, contents.model.model, contents.model.tokenizer, contents.model.prompt);
  write_file_atomic(target / "tools.json", collect_tools(contents.data));
  write_examples(target / "train.jsonl", contents.data.train);
  write_examples(target / "validation.jsonl", contents.data.validation);
  write_examples(target / "test.jsonl", contents.data.test);
  Json report = {{"base_model", contents.base_name},
                 {"training", contents.summary.to_json()},
                 {"train_examples", contents.data.train.size()},
                 {"validation_examples", contents.data.validation.size()},
                 {"test_examples", contents.data.test.size()},
                 {"warnings", contents.data.split.warnings},
                 {"base", contents.base ? to_json(*contents.base) : Json(nullptr)},
                 {"finetuned", to_json(contents.finetuned)}};
  write_json_file(target / "report.json", report);
  write_file_atomic(target / "report.md", report_text(contents));
  write_file_atomic(target / "README.md", readme_text(contents));
  directory.commit();
}

}  // namespace needle
