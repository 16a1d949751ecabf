#include "needle/train/run_config.h"

#include <algorithm>
#include <array>

#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/train/embedded_configs.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

struct ConfigText {
  std::string where;
  Json json;
};

const EmbeddedConfig* find_embedded(std::string_view name) {
  for (const EmbeddedConfig& config : embedded_configs()) {
    if (config.name == name) {
      return &config;
    }
  }
  return nullptr;
}

[[noreturn]] void throw_unknown(const std::string& source) {
  const std::vector<std::string> names = embedded_config_names();
  std::string known;
  for (const std::string& name : names) {
    known += (known.empty() ? "" : ", ") + name;
  }
  const auto nearest = nearest_name(source, names);
  throw ConfigError(format("{}: no such file, and no config of that name{}; known are {}", source,
                           nearest ? format(" (did you mean \"{}\"?)", *nearest) : "", known));
}

// A file, or one of the built-in ones by name. `folder`: where relative paths are tried first.
ConfigText find_config(const std::string& source, const fs::path& folder,
                       const std::string& prefix) {
  for (const fs::path& path : {folder / source, fs::path(source)}) {
    if (fs::is_regular_file(path)) {
      return {path.string(), read_json_file(path)};
    }
  }
  const std::string stem = source.ends_with(".json") ? source.substr(0, source.size() - 5) : source;
  for (const std::string& name : {prefix + stem, stem}) {
    if (const EmbeddedConfig* embedded = find_embedded(name)) {
      return {"config " + name, parse_json(embedded->text, "config " + name)};
    }
  }
  throw_unknown(source);
}

// Paths like "optimizer.adam.peak_lr" with the text of their values.
void flatten(const Json& json, const std::string& path,
             std::vector<std::pair<std::string, std::string>>& fields) {
  if (json.is_object()) {
    for (const auto& [key, value] : json.items()) {
      flatten(value, path.empty() ? key : path + "." + key, fields);
    }
  } else {
    fields.emplace_back(path, json.dump());
  }
}

// Fields that change what is written, when, or where it is computed, but not what is learned.
// (Another device or thread count changes rounding; that is the user's choice.)
bool may_differ(const std::string& field) {
  constexpr std::array<std::string_view, 17> kFree = {"output",
                                                      "tokenizer.",
                                                      "data.train",
                                                      "data.validation",
                                                      "data.cache",
                                                      "train.device",
                                                      "train.compute_dtype",
                                                      "train.activation_checkpointing",
                                                      "train.micro_batch",
                                                      "train.log_every",
                                                      "train.checkpoint_every",
                                                      "train.keep_checkpoints",
                                                      "train.max_bad_steps",
                                                      "train.spike.",
                                                      "train.exchange",
                                                      "train.rank_",
                                                      "validate."};
  return std::any_of(kFree.begin(), kFree.end(),
                     [&](std::string_view free) { return field.starts_with(free); }) &&
         field != "data.validation_rows";
}

void require(bool good, std::string_view where, std::string_view field, double value,
             std::string_view rule) {
  if (!good) {
    throw ConfigError(format("{}: {} = {}: give {}", where, field, value, rule));
  }
}

}  // namespace

void RunConfig::check(std::string_view where) const {
  model.validate(where);
  const auto at_least = [&](std::string_view field, std::int64_t value, std::int64_t least) {
    require(value >= least, where, field, static_cast<double>(value), format("{} or more", least));
  };
  at_least("train.batch_size", train.batch_size, 1);
  at_least("train.grad_accumulation", train.grad_accumulation, 1);
  at_least("train.epochs", train.epochs, 1);
  at_least("train.max_steps", train.max_steps, 0);
  at_least("train.contrastive_rows", train.contrastive_rows, 2);
  at_least("train.log_every", train.log_every, 1);
  at_least("train.checkpoint_every", train.checkpoint_every, 0);
  at_least("train.keep_checkpoints", train.keep_checkpoints, 1);
  at_least("train.validate_every", train.validate_every, 0);
  at_least("train.max_bad_steps", train.max_bad_steps, 1);
  at_least("train.spike.min_steps", train.spike.min_steps, 2);
  at_least("train.spike.window", train.spike.window, train.spike.min_steps);
  at_least("train.spike.steps", train.spike.steps, 1);
  at_least("train.spike.lr_steps", train.spike.lr_steps, 0);
  at_least("train.spike.max_rollbacks", train.spike.max_rollbacks, 0);
  at_least("data.validation_rows", data.validation_rows, 0);
  at_least("data.rows.prompt.max_enc_len", data.rows.prompt.max_enc_len, 8);
  at_least("data.rows.prompt.max_dec_len", data.rows.prompt.max_dec_len, 8);
  at_least("validate.batch_rows", validate.batch_rows, 1);
  at_least("validate.perplexity_rows", validate.perplexity_rows, 0);
  at_least("validate.generate_rows", validate.generate_rows, 0);
  at_least("validate.max_gen_len", validate.max_gen_len, 2);
  at_least("validate.threads", validate.threads, 0);
  require(train.dropout >= 0.0 && train.dropout < 1.0, where, "train.dropout", train.dropout,
          "0 or more, below 1");
  require(train.time_budget_s >= 0.0, where, "train.time_budget_s", train.time_budget_s,
          "0 or more seconds");
  const auto not_negative = [&](std::string_view field, double value) {
    require(value >= 0.0, where, field, value, "0 or more");
  };
  not_negative("train.spike.deviations", train.spike.deviations);
  not_negative("train.spike.loss_rise", train.spike.loss_rise);
  require(train.spike.grad_norm_factor == 0.0 || train.spike.grad_norm_factor >= 1.0, where,
          "train.spike.grad_norm_factor", train.spike.grad_norm_factor, "1 or more, or 0 (never)");
  require(train.spike.lr_factor > 0.0 && train.spike.lr_factor <= 1.0, where,
          "train.spike.lr_factor", train.spike.lr_factor, "more than 0, at most 1");
  require(train.rank_silence_s >= 1.0, where, "train.rank_silence_s", train.rank_silence_s,
          "1 second or more");
  require(train.rank_progress_s >= 1.0, where, "train.rank_progress_s", train.rank_progress_s,
          "1 second or more");
  require(validate.max_seconds >= 0.0, where, "validate.max_seconds", validate.max_seconds,
          "0 or more seconds");
}

PromptConfig serving_prompt(const RunConfig& config) {
  PromptConfig prompt = config.data.rows.prompt;
  prompt.max_enc_len = std::max(prompt.max_enc_len, config.model.max_seq_len);
  prompt.max_dec_len = std::max(prompt.max_dec_len, config.model.max_seq_len / 2);
  return prompt;
}

std::vector<std::string> embedded_config_names() {
  std::vector<std::string> names;
  for (const EmbeddedConfig& config : embedded_configs()) {
    names.emplace_back(config.name);
  }
  return names;
}

ModelConfig load_model_config(const std::string& source) {
  const ConfigText config = find_config(source, fs::path(), "model/");
  const auto model = from_json<ModelConfig>(config.json, config.where);
  model.validate(config.where);
  return model;
}

RunConfig load_run_config(const std::string& source, std::span<const std::string> overrides,
                          const RunConfig& defaults) {
  ConfigText config = find_config(source, fs::path(), "");
  if (const auto model = config.json.is_object() ? config.json.find("model") : config.json.end();
      model != config.json.end() && model->is_string()) {
    const fs::path folder =
        fs::is_regular_file(config.where) ? fs::path(config.where).parent_path() : fs::path();
    *model = find_config(model->get<std::string>(), folder, "model/").json;
  }
  RunConfig result = from_json<RunConfig>(config.json, config.where, defaults);
  for (const std::string& assignment : overrides) {
    apply_override(result, assignment);
  }
  result.check(config.where);
  return result;
}

void check_same_run(const RunConfig& saved, const RunConfig& now) {
  std::vector<std::pair<std::string, std::string>> before, after;
  flatten(to_json(saved), "", before);
  flatten(to_json(now), "", after);
  std::string differences;
  const auto compare = [&](const std::string& field, const std::string& old_value,
                           const std::string& new_value) {
    if (old_value != new_value && !may_differ(field)) {
      differences += format("\n  {}: was {}, now {}", field, old_value, new_value);
    }
  };
  for (const auto& [field, value] : before) {
    const auto match = std::find_if(after.begin(), after.end(),
                                    [&](const auto& entry) { return entry.first == field; });
    compare(field, value, match == after.end() ? "absent" : match->second);
  }
  if (!differences.empty()) {
    throw ConfigError(
        format("a run goes on with the settings that it began with; these differ:{}\n"
               "Undo the changes, or begin another run with --output",
               differences));
  }
}

std::string config_documentation() {
  std::string text = R"(# Configuration

A config is a JSON file; fields left out keep their defaults. Any field can be set on the command
line: `--set train.batch_size=16 --set optimizer.adam.peak_lr=3e-4`. An unknown field is an error
that names the nearest known one. The effective config is saved with every checkpoint.

`"model"` may be an object, the name of a built-in shape (`"small"`) or the path of a JSON file
beside the config. `needle-train config` lists the built-in configs, which `configs/` holds as files.

This page is written by `needle-train config --docs`. The defaults below are those of the code, as a
rule the reference's; the configs set ours.
)";
  const auto section_of = [](const FieldDoc& field) {
    const std::size_t dot = field.path.find('.');
    return dot == std::string::npos ? std::string("run") : field.path.substr(0, dot);
  };
  const std::vector<FieldDoc> fields = describe_fields<RunConfig>();
  std::vector<std::string> sections = {"run"};
  for (const FieldDoc& field : fields) {
    if (std::find(sections.begin(), sections.end(), section_of(field)) == sections.end()) {
      sections.push_back(section_of(field));
    }
  }
  for (const std::string& section : sections) {
    text += format("\n## {}\n\n| field | type | default | meaning |\n| --- | --- | --- | --- |\n",
                   section);
    for (const FieldDoc& field : fields) {
      if (section_of(field) == section) {
        text += format("| `{}` | {} | `{}` | {} |\n", field.path, field.type, field.default_value,
                       field.description);
      }
    }
  }
  return text;
}

}  // namespace needle
