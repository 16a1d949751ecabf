#include "needle/server/job_rows.h"

#include <algorithm>
#include <set>
#include <utility>

#include "needle/calls/call.h"
#include "needle/core/error.h"
#include "needle/data/jsonl_reader.h"
#include "needle/synth/generator.h"

namespace needle {
namespace {

// `templates` is a note to the generator, not for the model.
JsonValue without_templates(const Tool& tool) {
  JsonValue declared = tool.declared;
  if (declared.is_object()) {
    std::erase_if(declared.members(),
                  [](const auto& member) { return member.first == kToolTemplatesKey; });
  }
  return declared;
}

std::vector<Tool> offered(const std::vector<Tool>& tools, const std::vector<Call>& calls) {
  const auto called = [&](const Tool& tool) {
    return std::ranges::any_of(calls, [&](const Call& call) { return call.name == tool.name; });
  };
  std::vector<Tool> chosen;
  std::ranges::copy_if(tools, std::back_inserter(chosen), called);
  for (const Tool& tool : tools) {
    if (chosen.size() >= kOfferedTools) {
      break;
    }
    if (!called(tool)) {
      chosen.push_back(tool);
    }
  }
  return chosen;
}

Json row_json(std::string_view line, std::int64_t number) {
  Json row{{"line", number}};
  JsonParseResult parsed = parse_json_value(line);
  if (!parsed.value || !parsed.value->is_object()) {
    row["problem"] = parsed.value ? "expected an object" : parsed.error;
    return row;
  }
  try {
    const JsonValue* query = parsed.value->find("query");
    const JsonValue* answers = parsed.value->find("answers");
    const JsonValue* tools = parsed.value->find("tools");
    row["query"] = query != nullptr && query->is_string() ? query->as_string() : "";
    JsonValue list = JsonValue::array();
    for (const Call& call : answers == nullptr ? std::vector<Call>() : parse_calls(*answers)) {
      list.items().push_back(call.to_json());
    }
    row["answers"] = Json::parse(write_compact(list));
    row["tools"] = Json::array();
    for (const Tool& tool : tools == nullptr ? std::vector<Tool>() : parse_tools(*tools)) {
      row["tools"].push_back(tool.name);
    }
  } catch (const DataError& error) {
    row["problem"] = error.what();
  }
  return row;
}

}  // namespace

void write_synth_rows(AtomicFileWriter& rows, std::string_view tools, std::int64_t count,
                      std::uint64_t seed) {
  SynthConfig config;
  config.seed = seed;
  const RowGenerator generator(parse_tools_text(tools), config);
  for (std::int64_t i = 0; i < count; ++i) {
    rows.write(generator.row(static_cast<std::uint64_t>(i)).to_jsonl() + "\n");
  }
}

void copy_rows(AtomicFileWriter& rows, const std::filesystem::path& file) {
  for (LineReader lines(file); lines.next();) {
    rows.write(lines.text());
    rows.write(std::string_view("\n"));
  }
}

std::string tools_of_rows(const std::filesystem::path& file) {
  std::set<std::string> names;
  JsonValue::Array tools;
  for_each_call_example(file,
                        [&](const CallExample& row) {
                          try {
                            for (const Tool& tool : parse_tools_text(row.tools)) {
                              if (names.insert(tool.name).second) {
                                tools.push_back(tool.declared);
                              }
                            }
                          } catch (const DataError&) {  // the check of the rows tells
                          }
                        },
                        {.policy = RowPolicy::kLenient});
  return write_compact(JsonValue::array(std::move(tools)), JsonEscapes::kUtf8);
}

std::string row_line(const JsonValue& row, const std::vector<Tool>& tools, std::string_view path) {
  const JsonValue* query = row.find("query");
  const JsonValue* answers = row.find("answers");
  if (query == nullptr || !query->is_string() || query->as_string().empty()) {
    throw DataError(format("{}.query: expected a text", path));
  }
  if (answers == nullptr) {
    throw DataError(format("{}.answers: missing; expected a list of calls, [] for none", path));
  }
  std::vector<Call> calls;
  try {
    calls = parse_calls(*answers);
  } catch (const DataError& error) {
    throw DataError(format("{}.answers: {}", path, error.what()));
  }
  const JsonValue* own = row.find("tools");
  const std::vector<Tool> offer = own != nullptr ? parse_tools(*own) : offered(tools, calls);
  if (const auto problems = validate_calls(calls, offer); !problems.empty()) {
    throw DataError(
        format("{}.answers{}: {}", path, problems.front().path, problems.front().message));
  }
  JsonValue declared = JsonValue::array();
  for (const Tool& tool : offer) {
    declared.items().push_back(without_templates(tool));
  }
  JsonValue list = JsonValue::array();
  for (const Call& call : calls) {
    list.items().push_back(call.to_json());
  }
  return write_compact(
      JsonValue::object(
          {{"query", *query}, {"tools", std::move(declared)}, {"answers", std::move(list)}}),
      JsonEscapes::kUtf8);
}

Json rows_page(const std::filesystem::path& file, std::int64_t first, std::int64_t count) {
  Json rows = Json::array();
  LineReader lines(file);
  for (std::int64_t i = 0; i < first + count && lines.next(); ++i) {
    if (i >= first) {
      rows.push_back(row_json(lines.text(), lines.number()));
    }
  }
  return {{"first", first}, {"rows", std::move(rows)}};
}

}  // namespace needle
