#include "needle/data/check.h"

#include <algorithm>
#include <cstddef>
#include <map>
#include <span>
#include <string_view>
#include <unordered_map>
#include <utility>

#include "needle/calls/call.h"
#include "needle/calls/json_value.h"
#include "needle/calls/strip.h"
#include "needle/calls/tool.h"
#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/core/format.h"
#include "needle/core/thread_pool.h"
#include "needle/data/split.h"

namespace needle {
namespace {

constexpr std::size_t kKinds = kFindingKindNames.entries.size();

std::string lower_ascii(std::string_view text) {
  std::string lower(text);
  for (char& c : lower) {
    c = c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c;
  }
  return lower;
}

// Runs of ASCII letters and digits and of bytes above ASCII.
std::vector<std::string> words_of(std::string_view text) {
  std::vector<std::string> words(1);
  for (const char c : lower_ascii(text)) {
    if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || static_cast<unsigned char>(c) >= 0x80) {
      words.back() += c;
    } else if (!words.back().empty()) {
      words.emplace_back();
    }
  }
  if (words.back().empty()) {
    words.pop_back();
  }
  return words;
}

// The text itself, or its words: all of up to three, three quarters of more.
bool occurs_in(std::string_view value, std::string_view query) {
  const std::string text = lower_ascii(query);
  if (text.find(lower_ascii(strip_edges(value))) != std::string::npos) {
    return true;
  }
  const std::vector<std::string> words = words_of(value);
  const auto found = static_cast<std::size_t>(std::count_if(
      words.begin(), words.end(),
      [&text](const std::string& word) { return text.find(word) != std::string::npos; }));
  return words.size() <= 3 ? found == words.size() : 4 * found >= 3 * words.size();
}

// Every string inside a value.
void collect_strings(const JsonValue& value, std::vector<std::string_view>& strings) {
  if (value.is_string()) {
    strings.push_back(value.as_string());
  } else if (value.is_array()) {
    for (const JsonValue& item : value.items()) {
      collect_strings(item, strings);
    }
  } else if (value.is_object()) {
    for (const auto& [key, member] : value.members()) {
      collect_strings(member, strings);
    }
  }
}

// Calls of an answer whatever their order.
std::string canonical_answer(std::string_view answers) {
  const JsonParseResult parsed = parse_json_value(answers);
  if (!parsed.value) {
    return std::string(answers);
  }
  if (!parsed.value->is_array()) {
    return write_canonical(*parsed.value);
  }
  std::vector<std::string> calls;
  for (const JsonValue& call : parsed.value->items()) {
    calls.push_back(write_canonical(call));
  }
  std::sort(calls.begin(), calls.end());
  std::string text;
  for (const std::string& call : calls) {
    text += call + "\n";
  }
  return text;
}

class Checker {
 public:
  Checker(const std::filesystem::path& path, const CheckOptions& options)
      : path_(path), options_(options), single_thread_(1) {
    report_.counts.assign(kKinds, 0);
  }

  void check(const CallExample& row) {
    ++report_.rows;
    ++uses_[primary_tool(row)];
    check_calls(row);
    check_repeats(row);
    if (options_.tokenizer) {
      check_lengths(row);
    }
  }

  CheckReport finish(const ReadReport& read) {
    report_.counts[static_cast<std::size_t>(FindingKind::kBadRow)] += read.bad_rows;
    for (const RowProblem& problem : read.problems) {
      report_.findings.push_back({.kind = FindingKind::kBadRow, .place = problem});
    }
    std::stable_sort(
        report_.findings.begin(), report_.findings.end(),
        [](const Finding& a, const Finding& b) { return a.place.line < b.place.line; });
    for (const auto& [tool, examples] : uses_) {
      report_.tools.push_back({.tool = tool, .examples = examples});
      if (examples < options_.few_examples && tool != kNoTool) {
        report_.few.push_back(tool);
      }
    }
    std::stable_sort(report_.tools.begin(), report_.tools.end(),
                     [](const auto& a, const auto& b) { return a.examples > b.examples; });
    return std::move(report_);
  }

 private:
  void add(FindingKind kind, const CallExample& row, std::string message) {
    std::int64_t& count = report_.counts[static_cast<std::size_t>(kind)];
    if (++count <= options_.max_findings) {
      report_.findings.push_back(
          {.kind = kind,
           .place = {.file = path_, .line = row.line, .column = 0, .message = std::move(message)}});
    }
  }

  void check_calls(const CallExample& row) {
    std::optional<std::vector<Tool>> tools;
    std::optional<std::vector<Call>> calls;
    try {
      tools = parse_tools_text(row.tools);
    } catch (const DataError& error) {
      add(FindingKind::kBadTools, row, format("tools: {}", error.what()));
    }
    try {
      calls = parse_calls_text(row.answers);
    } catch (const DataError& error) {
      add(FindingKind::kBadAnswers, row, format("answers: {}", error.what()));
    }
    if (!calls) {
      return;
    }
    report_.calls += static_cast<std::int64_t>(calls->size());
    report_.rows_without_call += calls->empty() ? 1 : 0;
    if (tools) {
      for (const CallProblem& problem : validate_calls(*calls, *tools)) {
        add(FindingKind::kInvalidCall, row, format("answers{}: {}", problem.path, problem.message));
      }
      check_grounding(row, *calls, *tools);
    }
  }

  void check_grounding(const CallExample& row, std::span<const Call> calls,
                       std::span<const Tool> tools) {
    for (const Call& call : calls) {
      const auto tool = std::find_if(tools.begin(), tools.end(),
                                     [&](const Tool& t) { return t.name == call.name; });
      if (tool == tools.end() || !call.arguments.is_object()) {
        continue;
      }
      for (const auto& [key, value] : call.arguments.members()) {
        const ToolParameter* const parameter = tool->find_parameter(key);
        if (parameter != nullptr && parameter->schema.find("enum") != nullptr) {
          continue;  // one of given words, said in any other
        }
        std::vector<std::string_view> strings;
        collect_strings(value, strings);
        for (const std::string_view text : strings) {
          if (!occurs_in(text, row.query)) {
            add(FindingKind::kUngrounded, row,
                format("{}.{}: \"{}\" does not occur in the query", call.name, key, text));
          }
        }
      }
    }
  }

  void check_repeats(const CallExample& row) {
    std::string key(strip_edges(row.query));
    key += '\0';
    key += compact_json_text(row.tools);
    const std::string answer = canonical_answer(row.answers);
    const auto [first, is_new] =
        first_rows_.try_emplace(sha256_hex(key), FirstRow{row.line, sha256_hex(answer)});
    if (is_new) {
      return;
    }
    if (first->second.answer_hash == sha256_hex(answer)) {
      add(FindingKind::kDuplicate, row, format("the same row as line {}", first->second.line));
    } else {
      add(FindingKind::kConflict, row,
          format("the same query and tools as line {}, another answer", first->second.line));
    }
  }

  void check_lengths(const CallExample& row) {
    const EncodeReport lengths =
        encode_call_examples(std::span(&row, 1), *options_.tokenizer, options_.prompt,
                             options_.encode, single_thread_, report_.lengths.rows)
            .report;
    report_.lengths.merge(lengths);
    if (lengths.dropped_too_long > 0) {
      add(FindingKind::kTooLong, row,
          format("the answer does not fit into {} tokens: the row would be dropped",
                 options_.prompt.max_dec_len));
    } else if (lengths.cut_query_tokens + lengths.cut_tools_tokens > 0) {
      add(FindingKind::kTooLong, row,
          format("{} tokens of the query and {} of the tools do not fit into {}",
                 lengths.cut_query_tokens, lengths.cut_tools_tokens, options_.prompt.max_enc_len));
    }
  }

  struct FirstRow {
    std::int64_t line = 0;
    std::string answer_hash;
  };

  std::string path_;
  const CheckOptions& options_;
  ThreadPool single_thread_;
  CheckReport report_;
  std::map<std::string, std::int64_t> uses_;
  std::unordered_map<std::string, FirstRow> first_rows_;  // by hash of query and tools
};

}  // namespace

std::int64_t CheckReport::count(FindingKind kind) const {
  const auto index = static_cast<std::size_t>(kind);
  return index < counts.size() ? counts[index] : 0;
}

bool CheckReport::ok() const {
  return count(FindingKind::kBadRow) == 0 && count(FindingKind::kBadTools) == 0 &&
         count(FindingKind::kBadAnswers) == 0 && count(FindingKind::kInvalidCall) == 0;
}

Json CheckReport::to_json() const {
  Json json{
      {"ok", ok()}, {"rows", rows}, {"calls", calls}, {"rows_without_call", rows_without_call}};
  for (const auto& [kind, name] : kFindingKindNames.entries) {
    json["counts"][std::string(name)] = count(kind);
  }
  json["findings"] = Json::array();
  for (const Finding& finding : findings) {
    json["findings"].push_back({{"kind", kFindingKindNames.name(finding.kind)},
                                {"file", finding.place.file},
                                {"line", finding.place.line},
                                {"column", finding.place.column},
                                {"message", finding.place.message}});
  }
  json["tools"] = Json::object();
  for (const ToolUse& use : tools) {
    json["tools"][use.tool] = use.examples;
  }
  json["few_examples"] = few;
  json["lengths"] = needle::to_json(lengths);
  return json;
}

std::string CheckReport::text() const {
  std::string text;
  for (const Finding& finding : findings) {
    text += format("{} [{}]\n", finding.place.text(), kFindingKindNames.name(finding.kind));
  }
  text += format("{} rows, {} calls, {} rows without a call\n", rows, calls, rows_without_call);
  for (const auto& [kind, name] : kFindingKindNames.entries) {
    if (count(kind) > 0) {
      text += format("  {}: {}\n", name, count(kind));
    }
  }
  if (!few.empty()) {
    text += format("{} tools with few examples:", few.size());
    for (const std::string& tool : few) {
      text += " " + tool;
    }
    text += "\n";
  }
  if (lengths.rows > 0) {
    text += lengths.text() + "\n";
  }
  return text + (ok() ? "ok" : "not ok: bad rows, tools, answers or calls");
}

CheckReport check_calls_file(const std::filesystem::path& path, const CheckOptions& options) {
  Checker checker(path, options);
  const ReadReport read =
      for_each_call_example(path, [&checker](const CallExample& row) { checker.check(row); },
                            {.policy = RowPolicy::kLenient, .max_problems = options.max_findings});
  return checker.finish(read);
}

}  // namespace needle
