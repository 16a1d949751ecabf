// Runs small enough to train in a test: a few rows, a micro model, one CPU thread.
#pragma once

#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include <gtest/gtest.h>

#include <torch/torch.h>

#include "needle/core/file.h"
#include "needle/core/json.h"
#include "needle/train/finetune.h"
#include "needle/train/metrics.h"
#include "needle/train/pretrain.h"

namespace needle::test {

inline constexpr const char* kCities[] = {"oslo",  "rome",  "lima",  "cairo",
                                          "paris", "delhi", "quito", "accra"};

// The message of the exception of type Expected that `action` throws.
template <typename Expected, typename Action>
std::string message_of(const Action& action) {
  try {
    action();
  } catch (const Expected& error) {
    return error.what();
  }
  ADD_FAILURE() << "nothing of the expected type was thrown";
  return "";
}

// Function-call rows of two tools; every seventh asks for nothing that they can do.
inline std::string call_rows(int count) {
  const std::string tools =
      R"([{"name":"get_weather","description":"weather","parameters":{"city":{"type":"string","required":true}}},)"
      R"({"name":"set_alarm","description":"alarm","parameters":{"hour":{"type":"integer","required":true}}}])";
  std::string text;
  for (int i = 0; i < count; ++i) {
    const std::string city = kCities[i % 8];
    Json row = {{"query", "weather in " + city + " please"},
                {"tools", tools},
                {"answers", R"([{"name":"get_weather","arguments":{"city":")" + city + R"("}}])"}};
    if (i % 7 == 3) {
      row["query"] = "tell me a joke about " + city;
      row["answers"] = "[]";
    } else if (i % 2 == 1) {
      row["query"] = "wake me at " + std::to_string(i % 12);
      row["answers"] =
          R"([{"name":"set_alarm","arguments":{"hour":)" + std::to_string(i % 12) + "}}]";
    }
    text += row.dump() + "\n";
  }
  return text;
}

inline std::string text_rows(int count) {
  std::string text;
  for (int i = 0; i < count; ++i) {
    const std::string city = kCities[i % 8];
    text += Json{{"query", "say " + city + " " + std::to_string(i)},
                 {"query_seed_text", i % 3 == 0 ? "" : "towns"},
                 {"synthetic_answer", city + " is number " + std::to_string(i)}}
                .dump() +
            "\n";
  }
  return text;
}

inline std::filesystem::path write(const std::filesystem::path& path, std::string_view text) {
  std::ofstream(path, std::ios::binary) << text;
  return path;
}

// What makes any config micro. NEEDLE_HOME is not touched: the cache lies beside the run.
inline std::vector<std::string> micro_settings(const std::filesystem::path& folder) {
  return {"data.cache=" + (folder / "cache").string(),
          "tokenizer.train.num_threads=1",
          "data.rows.prompt.max_enc_len=128",
          "data.rows.prompt.max_dec_len=48",
          "data.validation_rows=2",
          "train.device=cpu",
          "train.batch_size=2",
          "train.validate_every=3",
          "train.checkpoint_every=2",
          "train.log_every=1",
          "train.dropout=0.1",
          "train.contrastive_rows=4",
          "step.quant.every=3",
          "validate.generate_rows=2",
          "validate.threads=1",
          "validate.max_gen_len=12"};
}

inline std::filesystem::path micro_model(const std::filesystem::path& folder) {
  return write(
      folder / "micro.json",
      R"({"vocab_size":340,"d_model":32,"num_heads":2,"num_kv_heads":1,"num_encoder_layers":1,)"
      R"("num_decoder_layers":1,"d_ff":64,"max_seq_len":512,"contrastive_dim":8})");
}

// A pretraining run in `folder`/`name` that lasts `steps`.
inline PretrainOptions micro_pretraining(const std::filesystem::path& folder,
                                         const std::string& name, int steps) {
  torch::set_num_threads(1);
  micro_model(folder);
  const auto config =
      write(folder / "config.json",
            R"({"model":"micro.json","tokenizer":{"train":{"json_symbols":["default"]}},)"
            R"("data":{"rows":{"kind":"pretrain"}}})");
  PretrainOptions options;
  options.config = config.string();
  options.overrides = micro_settings(folder);
  options.overrides.push_back("train.max_steps=" + std::to_string(steps));
  options.overrides.push_back("train.grad_accumulation=2");
  options.data = {write(folder / "text.jsonl", text_rows(60)).string()};
  options.output = (folder / name).string();
  return options;
}

// A finetuning from scratch.
inline FinetuneOptions micro_finetuning(const std::filesystem::path& folder,
                                        const std::string& name, int rows, int epochs) {
  torch::set_num_threads(1);
  FinetuneOptions options;
  options.checkpoint = "none";
  options.model_config = micro_model(folder).string();
  options.overrides = micro_settings(folder);
  options.overrides.push_back("train.epochs=" + std::to_string(epochs));
  options.overrides.push_back("train.validate_every=0");
  options.overrides.push_back("train.checkpoint_every=0");
  options.overrides.push_back("step.contrastive_every=2");
  options.data = write(folder / "rows.jsonl", call_rows(rows)).string();
  options.output = (folder / name).string();
  return options;
}

// metrics.jsonl without the times.
inline std::vector<Json> timeless_metrics(const std::filesystem::path& run) {
  std::vector<Json> records = read_metrics(run);
  for (Json& record : records) {
    record.erase("seconds");
    record.erase("tokens_per_second");
    record.erase("utilization");
    record.erase("data_wait_ms");
  }
  return records;
}

}  // namespace needle::test
