#include "needle/server/finetune_job.h"

#include <algorithm>
#include <sstream>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace {

bool is_letter_or_digit(char c) {
  return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

}  // namespace

JobState JobState::from_json(const Json& json) {
  try {
    const auto stage = kJobStageNames.parse(json.at("stage").get<std::string>());
    if (!stage) {
      throw FormatError(format("stage {}: unknown", json.at("stage").dump()));
    }
    return {.id = json.at("id"),
            .name = json.at("name"),
            .stage = *stage,
            .message = json.at("message"),
            .created = json.at("created"),
            .started = json.at("started"),
            .ended = json.at("ended"),
            .source = json.at("source"),
            .settings = json.at("settings"),
            .check = json.at("check"),
            .process = {.id = json.at("process").at("id"), .start = json.at("process").at("start")},
            .model = json.at("model")};
  } catch (const nlohmann::json::exception& error) {
    throw FormatError(format("no job: {}", error.what()));
  }
}

Json JobState::to_json() const {
  return {{"id", id},
          {"name", name},
          {"stage", kJobStageNames.name(stage)},
          {"message", message},
          {"created", created},
          {"started", started},
          {"ended", ended},
          {"source", source},
          {"settings", settings},
          {"check", check},
          {"process", {{"id", process.id}, {"start", process.start}}},
          {"model", model}};
}

bool JobState::active() const {
  return stage == JobStage::kMaking || stage == JobStage::kTraining ||
         stage == JobStage::kExporting;
}

bool is_file_name(std::string_view name) {
  return !name.empty() && name.size() <= 64 && is_letter_or_digit(name.front()) &&
         std::ranges::all_of(name, [](char c) {
           return is_letter_or_digit(c) || c == '.' || c == '_' || c == '-';
         });
}

std::string last_message(const std::filesystem::path& messages) {
  std::string text;
  try {
    text = read_file(messages);
  } catch (const FileError&) {
    return "";
  }
  std::ranges::replace(text, '\r', '\n');  // progress bars
  std::istringstream lines(text);
  std::string last;
  bool is_error = false;
  for (std::string line; std::getline(lines, line);) {
    const bool error = line.find("error: ") != std::string::npos;
    if (line.find_first_not_of(" \t") != std::string::npos && (error || !is_error)) {
      last = line;
      is_error = error;
    }
  }
  constexpr std::size_t kMost = 600;
  return last.substr(0, kMost);
}

}  // namespace needle
