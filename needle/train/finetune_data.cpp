#include "needle/train/finetune_data.h"

#include <algorithm>
#include <array>
#include <set>

#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/data/check.h"
#include "needle/data/jsonl_reader.h"

namespace needle {
namespace {

bool is_fatal(FindingKind kind) {
  return kind == FindingKind::kBadRow || kind == FindingKind::kBadTools ||
         kind == FindingKind::kBadAnswers;
}

std::string first_places(const CheckReport& report, FindingKind kind, std::size_t count) {
  std::string text;
  for (const Finding& finding : report.findings) {
    if (finding.kind == kind && count > 0) {
      text += "\n  " + finding.place.text();
      --count;
    }
  }
  return text;
}

void check_rows(const std::filesystem::path& path, const CheckReport& report, bool skip_bad_rows) {
  std::string fatal;
  for (const FindingKind kind :
       {FindingKind::kBadRow, FindingKind::kBadTools, FindingKind::kBadAnswers}) {
    fatal += first_places(report, kind, 3);
  }
  if (!fatal.empty() && !skip_bad_rows) {
    throw DataError(
        format("{}: rows that cannot be trained on:{}\nCorrect them (needle-data check lists all), "
               "or leave "
               "them out with --set data.rows.skip_bad_rows=true",
               path, fatal));
  }
  if (!fatal.empty()) {
    log_warning("rows left out:{}", fatal);
  }
  constexpr std::array<std::pair<FindingKind, const char*>, 3> kHints = {
      {{FindingKind::kInvalidCall, "calls that do not fit their tool"},
       {FindingKind::kConflict, "rows with the same query and tools but another answer"},
       {FindingKind::kDuplicate, "rows that repeat an earlier one"}}};
  for (const auto& [kind, name] : kHints) {
    if (const std::int64_t count = report.count(kind); count > 0) {
      log_warning("{}: {} {}, e.g.{}", path, count, name, first_places(report, kind, 1));
    }
  }
}

}  // namespace

FinetuneData read_finetune_data(const std::filesystem::path& path, const SplitConfig& config,
                                bool skip_bad_rows) {
  const CheckReport report = check_calls_file(path, {.max_findings = 1'000'000});
  check_rows(path, report, skip_bad_rows);
  std::set<std::int64_t> bad_lines;
  for (const Finding& finding : report.findings) {
    if (is_fatal(finding.kind)) {
      bad_lines.insert(finding.place.line);
    }
  }
  std::vector<CallExample> examples;
  for_each_call_example(path,
                        [&](CallExample example) {
                          if (!bad_lines.contains(example.line)) {
                            examples.push_back(std::move(example));
                          }
                        },
                        {.policy = skip_bad_rows ? RowPolicy::kLenient : RowPolicy::kStrict});
  if (examples.empty()) {
    throw DataError(
        format("{}: no rows to train on; a row is {{\"query\": ..., \"tools\": [...], \"answers\": "
               "[...]}}",
               path));
  }
  FinetuneData data;
  data.split = split_by_tool(examples, config);
  for (const std::string& warning : data.split.warnings) {
    log_warning("{}", warning);
  }
  data.train = select_examples(examples, data.split.train);
  data.validation = select_examples(examples, data.split.validation);
  data.test = select_examples(examples, data.split.test);
  return data;
}

std::string collect_tools(const FinetuneData& data) {
  std::set<std::string> seen;
  std::string text;
  for (const auto* part : {&data.train, &data.validation, &data.test}) {
    for (const CallExample& example : *part) {
      for (const Tool& tool : parse_tools_text(example.tools)) {
        if (seen.insert(tool.name).second) {
          text += format("{}\n  {}", text.empty() ? "" : ",",
                         write_compact(tool.declared, JsonEscapes::kUtf8));
        }
      }
    }
  }
  return format("[{}\n]\n", text);
}

}  // namespace needle
