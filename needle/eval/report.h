// Reports as JSON for machines and as tables for people.
#pragma once

#include <span>
#include <string>
#include <utility>

#include "needle/core/enum_names.h"
#include "needle/core/json.h"
#include "needle/eval/compare.h"
#include "needle/eval/evaluate.h"
#include "needle/eval/retrieval_metrics.h"

namespace needle {

enum class TableStyle { kText, kMarkdown };
inline constexpr EnumNames<TableStyle, 2> kTableStyleNames{
    {{{TableStyle::kText, "text"}, {TableStyle::kMarkdown, "markdown"}}}};

Json to_json(const CallCounts& counts);  // figures and the counts behind them
Json to_json(const CallReport& report);
Json to_json(const RetrievalCounts& counts);
Json to_json(const Comparison& comparison);

using NamedReport = std::pair<std::string, const CallReport*>;

// One column a report: every figure strict, the main ones loose too.
std::string figures_table(std::span<const NamedReport> reports,
                          TableStyle style = TableStyle::kText);
// One row a tool: right calls of all, one column a report.
std::string tools_table(std::span<const NamedReport> reports, TableStyle style = TableStyle::kText);
// Exact match and call F1 by number of calls and of tools.
std::string buckets_table(const CallReport& report, TableStyle style = TableStyle::kText);
std::string retrieval_table(const RetrievalCounts& counts, TableStyle style = TableStyle::kText);
std::string comparison_table(const Comparison& comparison, std::string_view name_a,
                             std::string_view name_b, TableStyle style = TableStyle::kText);
// The first `count` failures in full, and how many there are of each kind.
std::string failures_text(const CallReport& report, std::size_t count);

}  // namespace needle
