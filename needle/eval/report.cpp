#include "needle/eval/report.h"

#include <algorithm>
#include <set>
#include <string_view>
#include <vector>

#include "needle/calls/utf8.h"
#include "needle/core/format.h"

namespace needle {
namespace {

using Row = std::vector<std::string>;

std::size_t width_of(std::string_view text) {  // characters, good enough for alignment
  return static_cast<std::size_t>(std::count_if(text.begin(), text.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xC0) != 0x80;
  }));
}

std::string padded(const std::string& text, std::size_t width, bool right) {
  const std::string blank(width - std::min(width, width_of(text)), ' ');
  return right ? blank + text : text + blank;
}

// The first row is the head; the first column stands left, the others right.
std::string table(const std::vector<Row>& rows, TableStyle style) {
  std::vector<std::size_t> widths(rows.front().size(), 3);
  for (const Row& row : rows) {
    for (std::size_t i = 0; i < row.size(); ++i) {
      widths[i] = std::max(widths[i], width_of(row[i]));
    }
  }
  std::string text;
  for (std::size_t r = 0; r < rows.size(); ++r) {
    const bool markdown = style == TableStyle::kMarkdown;
    std::string line = markdown ? "|" : "";
    std::string rule = markdown ? "|" : "";
    for (std::size_t i = 0; i < rows[r].size(); ++i) {
      line += (markdown ? " " : (i == 0 ? "" : "  ")) + padded(rows[r][i], widths[i], i > 0) +
              (markdown ? " |" : "");
      rule += (markdown ? " " : (i == 0 ? "" : "  ")) +
              std::string(widths[i] - (markdown && i > 0 ? 1 : 0), '-') +
              (markdown ? (i > 0 ? ": |" : " |") : "");
    }
    text += line + "\n" + (r == 0 ? rule + "\n" : "");
  }
  return text;
}

std::string percent(double share) { return format("{:.1f} %", 100 * share); }

struct Figure {
  std::string_view key;
  std::string_view title;
  double (*value)(const CallCounts& counts);
};

// Every figure of a group of examples: the one list behind JSON and tables.
constexpr Figure kFigures[] = {
    {"parse_rate", "parse rate", [](const CallCounts& c) { return c.parsed.ratio(); }},
    {"exact_match", "exact match", [](const CallCounts& c) { return c.exact.ratio(); }},
    {"right_tools", "right tools", [](const CallCounts& c) { return c.right_tools.ratio(); }},
    {"name_precision", "name precision", [](const CallCounts& c) { return c.names.precision(); }},
    {"name_recall", "name recall", [](const CallCounts& c) { return c.names.recall(); }},
    {"name_f1", "name F1", [](const CallCounts& c) { return c.names.f1(); }},
    {"call_precision", "call precision", [](const CallCounts& c) { return c.calls.precision(); }},
    {"call_recall", "call recall", [](const CallCounts& c) { return c.calls.recall(); }},
    {"call_f1", "call F1", [](const CallCounts& c) { return c.calls.f1(); }},
    {"args_accuracy", "arguments right", [](const CallCounts& c) { return c.arguments.ratio(); }},
    {"value_accuracy", "values right", [](const CallCounts& c) { return c.values.ratio(); }},
    {"hallucinated_keys", "keys made up",
     [](const CallCounts& c) { return c.hallucinated_keys.ratio(); }},
    {"missed_keys", "keys missed", [](const CallCounts& c) { return c.missed_keys.ratio(); }},
    {"false_call_rate", "false calls", [](const CallCounts& c) { return c.false_calls.ratio(); }},
    {"empty_reference_share", "rows without a call",
     [](const CallCounts& c) { return c.empty_references.ratio(); }},
    {"empty_prediction_share", "answers without a call",
     [](const CallCounts& c) { return c.empty_predictions.ratio(); }},
};

// A figure of which the data has no case is a dash, not a zero.
std::string shown(const Figure& figure, const CallCounts& counts) {
  const std::pair<std::string_view, const HitCounts&> optional[] = {
      {"args_accuracy", counts.arguments},
      {"value_accuracy", counts.values},
      {"hallucinated_keys", counts.hallucinated_keys},
      {"missed_keys", counts.missed_keys},
      {"false_call_rate", counts.false_calls}};
  for (const auto& [key, hits] : optional) {
    if (figure.key == key && hits.total == 0) {
      return "-";
    }
  }
  return percent(figure.value(counts));
}

Json to_json(const HitCounts& counts) { return {{"hits", counts.hits}, {"total", counts.total}}; }

Json to_json(const MatchCounts& counts) {
  return {{"matched", counts.matched}, {"wrong", counts.wrong}, {"missed", counts.missed}};
}

std::string one_line(std::string_view text) {
  std::string line(text);
  std::replace(line.begin(), line.end(), '\n', ' ');
  return replace_invalid_utf8(line);
}

}  // namespace

Json to_json(const CallCounts& counts) {
  Json json = {{"examples", counts.examples()}};
  for (const Figure& figure : kFigures) {
    json[std::string(figure.key)] = figure.value(counts);
  }
  json["counts"] = {{"parsed", to_json(counts.parsed)},
                    {"exact", to_json(counts.exact)},
                    {"right_tools", to_json(counts.right_tools)},
                    {"names", to_json(counts.names)},
                    {"calls", to_json(counts.calls)},
                    {"arguments", to_json(counts.arguments)},
                    {"values", to_json(counts.values)},
                    {"hallucinated_keys", to_json(counts.hallucinated_keys)},
                    {"missed_keys", to_json(counts.missed_keys)},
                    {"false_calls", to_json(counts.false_calls)}};
  Json tools = Json::object();
  for (const auto& [name, score] : counts.tools) {
    tools[name] = {{"correct", score.correct}, {"total", score.total}};
  }
  json["per_tool"] = std::move(tools);
  return json;
}

Json to_json(const CallReport& report) {
  Json buckets = Json::array();
  for (const auto& [bucket, counts] : report.by_bucket) {
    buckets.push_back({{"calls", kCallPoolNames.name(bucket.pool)},
                       {"tools", bucket.tools},
                       {"examples", counts.examples()},
                       {"exact_match", counts.exact.ratio()},
                       {"call_f1", counts.calls.f1()}});
  }
  Json failures = Json::array();
  for (const CallFailure& failure : report.failures) {
    failures.push_back({{"index", failure.index},
                        {"query", failure.query},
                        {"reference", failure.reference},
                        {"prediction", failure.prediction},
                        {"reasons", failure.reasons}});
  }
  return {{"examples", report.strict.examples()},
          {"strict", to_json(report.strict)},
          {"loose", to_json(report.loose)},
          {"buckets", std::move(buckets)},
          {"failure_kinds", report.failure_kinds},
          {"failures", std::move(failures)},
          {"cut_prompts", report.cut_prompts},
          {"length_limited", report.length_limited},
          {"speed",
           {{"tokens", report.speed.tokens},
            {"wall_seconds", report.speed.wall_seconds},
            {"tokens_per_second", report.speed.tokens_per_second},
            {"mean_prefill_seconds", report.speed.mean_prefill_seconds},
            {"median_seconds", report.speed.median_seconds},
            {"p95_seconds", report.speed.p95_seconds}}}};
}

Json to_json(const RetrievalCounts& counts) {
  Json recall = Json::object();
  for (std::size_t k = 1; k <= kRecallDepth; ++k) {
    recall[format("{}", k)] = counts.recall(k);
  }
  return {{"queries", counts.queries},
          {"recall", std::move(recall)},
          {"mrr", counts.mean_reciprocal_rank()}};
}

Json to_json(const Comparison& comparison) {
  return {{"cases", comparison.cases},
          {"same_tokens", comparison.same_tokens},
          {"same_text", comparison.same_text},
          {"exact_a", comparison.exact_a},
          {"exact_b", comparison.exact_b},
          {"only_a", comparison.only_a},
          {"only_b", comparison.only_b},
          {"p_value", comparison.p_value},
          {"difference", comparison.difference},
          {"difference_95", {comparison.difference_low, comparison.difference_high}},
          {"disagreements", comparison.disagreements}};
}

std::string figures_table(std::span<const NamedReport> reports, TableStyle style) {
  Row head = {""};
  Row examples = {"examples"};
  for (const auto& [name, report] : reports) {
    head.push_back(name);
    examples.push_back(format("{}", report->strict.examples()));
  }
  std::vector<Row> rows = {head, examples};
  for (const Figure& figure : kFigures) {
    Row row = {std::string(figure.title)};
    for (const auto& [name, report] : reports) {
      row.push_back(shown(figure, report->strict));
    }
    rows.push_back(std::move(row));
  }
  for (const std::string_view key : {"exact_match", "call_f1", "value_accuracy"}) {
    const Figure& figure = *std::find_if(std::begin(kFigures), std::end(kFigures),
                                         [&](const Figure& f) { return f.key == key; });
    Row row = {std::string(figure.title) + ", loosely"};
    for (const auto& [name, report] : reports) {
      row.push_back(shown(figure, report->loose));
    }
    rows.push_back(std::move(row));
  }
  Row cut = {"prompts cut"};
  Row limited = {"answers at the length limit"};
  Row speed = {"tokens/s"};
  Row median = {"median ms a query"};
  Row p95 = {"95th percentile ms"};
  for (const auto& [name, report] : reports) {
    cut.push_back(format("{}", report->cut_prompts));
    limited.push_back(format("{}", report->length_limited));
    speed.push_back(format("{:.0f}", report->speed.tokens_per_second));
    median.push_back(format("{:.1f}", 1000 * report->speed.median_seconds));
    p95.push_back(format("{:.1f}", 1000 * report->speed.p95_seconds));
  }
  rows.insert(rows.end(), {cut, limited, speed, median, p95});
  return table(rows, style);
}

std::string tools_table(std::span<const NamedReport> reports, TableStyle style) {
  Row head = {"tool"};
  std::set<std::string> names;
  for (const auto& [name, report] : reports) {
    head.push_back(name);
    for (const auto& [tool, score] : report->strict.tools) {
      names.insert(tool);
    }
  }
  std::vector<Row> rows = {head};
  for (const std::string& tool : names) {
    Row row = {one_line(tool)};
    for (const auto& [name, report] : reports) {
      const auto score = report->strict.tools.find(tool);
      row.push_back(score == report->strict.tools.end()
                        ? "-"
                        : format("{}/{}", score->second.correct, score->second.total));
    }
    rows.push_back(std::move(row));
  }
  return table(rows, style);
}

std::string buckets_table(const CallReport& report, TableStyle style) {
  std::vector<Row> rows = {{"calls", "tools", "examples", "exact match", "call F1"}};
  for (const auto& [bucket, counts] : report.by_bucket) {
    rows.push_back({std::string(kCallPoolNames.name(bucket.pool)),
                    format("{}{}", bucket.tools, bucket.tools == kMostToolsBucket ? "+" : ""),
                    format("{}", counts.examples()), percent(counts.exact.ratio()),
                    bucket.pool == CallPool::kNone ? "-" : percent(counts.calls.f1())});
  }
  return table(rows, style);
}

std::string retrieval_table(const RetrievalCounts& counts, TableStyle style) {
  std::vector<Row> rows = {{"", "retrieval"}, {"queries", format("{}", counts.queries)}};
  for (std::size_t k = 1; k <= kRecallDepth; ++k) {
    rows.push_back({format("recall@{}", k), percent(counts.recall(k))});
  }
  rows.push_back({"MRR", format("{:.3f}", counts.mean_reciprocal_rank())});
  return table(rows, style);
}

std::string comparison_table(const Comparison& comparison, std::string_view name_a,
                             std::string_view name_b, TableStyle style) {
  const auto share = [&](std::int64_t count) {
    const auto cases = static_cast<double>(std::max<std::int64_t>(1, comparison.cases));
    return format("{} ({:.1f} %)", count, 100 * static_cast<double>(count) / cases);
  };
  return table({{"", "comparison"},
                {"answers", format("{}", comparison.cases)},
                {"same token for token", share(comparison.same_tokens)},
                {"same text", share(comparison.same_text)},
                {format("exact: {}", name_a), share(comparison.exact_a)},
                {format("exact: {}", name_b), share(comparison.exact_b)},
                {format("exact only with {}", name_a), share(comparison.only_a)},
                {format("exact only with {}", name_b), share(comparison.only_b)},
                {"difference in exact match (95 %)",
                 format("{:+.1f} % ({:+.1f} to {:+.1f})", 100 * comparison.difference,
                        100 * comparison.difference_low, 100 * comparison.difference_high)},
                {"p value (McNemar)", format("{:.3g}", comparison.p_value)}},
               style);
}

std::string failures_text(const CallReport& report, std::size_t count) {
  std::string text;
  for (const auto& [kind, number] : report.failure_kinds) {
    text += format("{}{} {}", text.empty() ? "wrong answers by reason: " : ", ", kind, number);
  }
  if (!text.empty()) {
    text += "\n";
  }
  for (std::size_t i = 0; i < std::min(count, report.failures.size()); ++i) {
    const CallFailure& failure = report.failures[i];
    text +=
        format("\n[{}] {}\n  expected  {}\n  got       {}\n", failure.index + 1,
               one_line(failure.query), one_line(failure.reference), one_line(failure.prediction));
    for (const std::string& reason : failure.reasons) {
      text += format("  - {}\n", one_line(reason));
    }
  }
  return text;
}

}  // namespace needle
