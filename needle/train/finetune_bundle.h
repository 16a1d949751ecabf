// What a finetuning leaves for its user: one folder that explains itself.
#pragma once

#include <filesystem>
#include <optional>
#include <string>

#include "needle/eval/evaluate.h"
#include "needle/train/finetune_data.h"
#include "needle/train/saved_model.h"
#include "needle/train/trainer.h"

namespace needle {

struct BundleContents {
  const SavedModel& model;
  const FinetuneData& data;
  const TrainSummary& summary;
  const std::optional<CallReport>& base;  // nothing: trained from scratch
  const CallReport& finetuned;
  std::string base_name;  // where the base came from
};

// Base and finetuned side by side: figures, then right calls per tool.
std::string comparison_text(const std::optional<CallReport>& base, const CallReport& finetuned,
                            bool markdown);

// The checkpoint (model.safetensors, model.json, tokenizer.model), tools.json, train.jsonl,
// validation.jsonl, test.jsonl, report.json, report.md and README.md; replaces an older bundle as a
// whole.
void write_bundle(const std::filesystem::path& folder, const BundleContents& contents);

}  // namespace needle
