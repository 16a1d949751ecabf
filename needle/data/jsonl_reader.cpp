#include "needle/data/jsonl_reader.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <cstring>
#include <optional>
#include <stdexcept>
#include <system_error>
#include <utility>

#include <zlib.h>

#include "needle/calls/json_value.h"
#include "needle/calls/strip.h"
#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/format.h"

namespace needle {
namespace {

constexpr std::size_t kBufferBytes = std::size_t{256} << 10;
constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";

}  // namespace

struct LineReader::Impl {
  std::filesystem::path path;
  std::size_t max_line_bytes = 0;
  gzFile file = nullptr;
  std::string buffer = std::string(kBufferBytes, '\0');
  std::size_t begin = 0;
  std::size_t end = 0;
  std::string line;
  std::int64_t number = 0;
  bool too_long = false;

  bool refill() {
    const int count = gzread(file, buffer.data(), static_cast<unsigned>(buffer.size()));
    int code = Z_OK;
    const char* reason = gzerror(file, &code);
    if (count < 0 || code == Z_BUF_ERROR) {  // the latter: the compressed stream ends too early
      if (code == Z_ERRNO) {
        throw FileError(format("{}: cannot read: {}", path, std::strerror(errno)));
      }
      throw FormatError(
          format("{}: damaged or truncated gzip data after line {} ({}); copy the file again", path,
                 number, code == Z_BUF_ERROR ? "it ends too early" : reason));
    }
    begin = 0;
    end = static_cast<std::size_t>(count);
    return count > 0;
  }

  void append(std::string_view bytes) {
    const std::size_t room = max_line_bytes - std::min(max_line_bytes, line.size());
    too_long = too_long || bytes.size() > room;
    line.append(bytes.substr(0, room));
  }
};

LineReader::LineReader(const std::filesystem::path& path, std::size_t max_line_bytes)
    : impl_(std::make_unique<Impl>()) {
  impl_->path = path;
  impl_->max_line_bytes = max_line_bytes;
  errno = 0;
  impl_->file = gzopen(path.c_str(), "rb");
  if (impl_->file == nullptr) {
    throw FileError(
        format("{}: cannot open: {}", path, errno != 0 ? std::strerror(errno) : "out of memory"));
  }
  gzbuffer(impl_->file, static_cast<unsigned>(kBufferBytes));
}

LineReader::~LineReader() {
  if (impl_->file != nullptr) {
    gzclose(impl_->file);
  }
}

bool LineReader::next() {
  Impl& impl = *impl_;
  impl.line.clear();
  impl.too_long = false;
  bool any = false;
  while (impl.begin < impl.end || impl.refill()) {
    any = true;
    const std::string_view rest(impl.buffer.data() + impl.begin, impl.end - impl.begin);
    const std::size_t newline = rest.find('\n');
    impl.append(rest.substr(0, newline));
    if (newline != std::string_view::npos) {
      impl.begin += newline + 1;
      break;
    }
    impl.begin = impl.end;
  }
  if (!any) {
    return false;
  }
  ++impl.number;
  if (!impl.line.empty() && impl.line.back() == '\r') {
    impl.line.pop_back();
  }
  if (impl.number == 1 && impl.line.starts_with(kByteOrderMark)) {
    impl.line.erase(0, kByteOrderMark.size());
  }
  return true;
}

std::string_view LineReader::text() const { return impl_->line; }
std::int64_t LineReader::number() const { return impl_->number; }
bool LineReader::too_long() const { return impl_->too_long; }

std::string RowProblem::text() const {
  return column > 0 ? format("{}:{}:{}: {}", file, line, column, message)
                    : format("{}:{}: {}", file, line, message);
}

namespace {

// What is wrong with a row; becomes a RowProblem where file and line are known.
struct RowError : std::runtime_error {
  explicit RowError(const std::string& message, std::int64_t at_column = 0)
      : std::runtime_error(message), column(at_column) {}
  std::int64_t column;
};

// "line 1 column 5: expected ','" -> column 5 and the rest; other texts as they are.
RowError json_error(std::string_view error) {
  constexpr std::string_view kPrefix = "line 1 column ";
  if (error.starts_with(kPrefix)) {
    const char* const last = error.data() + error.size();
    std::int64_t column = 0;
    const auto [next, code] = std::from_chars(error.data() + kPrefix.size(), last, column);
    if (code == std::errc{}) {
      std::string_view rest(next, static_cast<std::size_t>(last - next));
      rest.remove_prefix(std::min(rest.find_first_not_of(": "), rest.size()));
      return RowError(std::string(rest), column);
    }
  }
  return RowError(std::string(error));
}

JsonValue parse_row(const LineReader& line, std::size_t max_line_bytes) {
  if (line.too_long()) {
    throw RowError(
        format("the line is longer than {} bytes; is this a JSONL file, one object a line?",
               max_line_bytes));
  }
  const std::string_view text = line.text();
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t length = utf8_length_at(text, at);
    if (length == 0) {
      throw RowError(format("expected UTF-8, got byte 0x{:02x}; convert the file to UTF-8",
                            static_cast<unsigned>(static_cast<unsigned char>(text[at]))),
                     static_cast<std::int64_t>(at) + 1);
    }
    at += length;
  }
  JsonParseResult parsed = parse_json_value(text);
  if (!parsed.value) {
    throw json_error(parsed.error);
  }
  if (!parsed.value->is_object()) {
    throw RowError(
        format("expected one JSON object a line, got {}", kind_name(parsed.value->kind())), 1);
  }
  return *std::move(parsed.value);
}

const std::string& checked_string(const JsonValue& value, std::string_view key) {
  if (!is_valid_utf8(value.as_string())) {
    throw RowError(
        format("\"{}\" holds half of a surrogate pair (\\ud800 to \\udfff alone), which is "
               "no character; remove it",
               key));
  }
  return value.as_string();
}

const JsonValue& required(const JsonValue& row, std::string_view key, std::string_view expected) {
  const JsonValue* const value = row.find(key);
  if (value == nullptr) {
    std::string present;
    for (const auto& [name, unused] : row.members()) {
      present += format("{}\"{}\"", present.empty() ? "" : ", ", name);
      if (present.size() > 200) {
        present += ", ...";
        break;
      }
    }
    throw RowError(format("\"{}\" is missing: expected {}; the row has {}", key, expected,
                          present.empty() ? "no keys" : present));
  }
  return *value;
}

std::string required_string(const JsonValue& row, std::string_view key) {
  const JsonValue& value = required(row, key, "a string");
  if (!value.is_string()) {
    throw RowError(format("\"{}\": expected a string, got {}", key, kind_name(value.kind())));
  }
  return checked_string(value, key);
}

// JSON text, whether the row holds it as a string or as a real array.
std::string json_text(const JsonValue& value, std::string_view key) {
  if (value.is_string()) {
    return checked_string(value, key);
  }
  if (value.is_array()) {
    return write_compact(value);
  }
  throw RowError(
      format("\"{}\": expected an array or a JSON string, got {}", key, kind_name(value.kind())));
}

std::string optional_string(const JsonValue& row, std::string_view key) {
  const JsonValue* const value = row.find(key);
  if (value == nullptr || value->is_null()) {
    return "";
  }
  if (!value->is_string()) {
    throw RowError(format("\"{}\": expected a string, got {}", key, kind_name(value->kind())));
  }
  return checked_string(*value, key);
}

CallExample to_call_example(const JsonValue& row, std::int64_t line) {
  constexpr std::string_view kExpected = "an array or a JSON string";
  return {.query = required_string(row, "query"),
          .tools = json_text(required(row, "tools", kExpected), "tools"),
          .answers = json_text(required(row, "answers", kExpected), "answers"),
          .line = line};
}

PretrainExample to_pretrain_example(const JsonValue& row, std::int64_t line) {
  if (row.find("query") == nullptr && row.find("synthetic_answer") == nullptr) {
    static_cast<void>(required_string(row, "query"));  // names what the row has instead
  }
  return {.query = optional_string(row, "query"),
          .seed_text = optional_string(row, "query_seed_text"),
          .answer = optional_string(row, "synthetic_answer"),
          .line = line};
}

std::vector<std::string> to_texts(const JsonValue& row, std::int64_t /*line*/) {
  if (row.find("text") != nullptr) {
    return {required_string(row, "text")};
  }
  constexpr std::array<std::string_view, 5> kColumns{"query", "tools", "answers", "query_seed_text",
                                                     "synthetic_answer"};
  std::vector<std::string> texts;
  bool any = false;
  for (const std::string_view key : kColumns) {
    const JsonValue* const value = row.find(key);
    any = any || value != nullptr;
    if (value != nullptr && !value->is_null()) {
      texts.push_back(json_text(*value, key));
    }
  }
  if (!any) {
    static_cast<void>(required(row, "text", "a string (or query, tools, answers)"));
  }
  return texts;
}

template <typename Convert, typename Visit>
ReadReport read_rows(const std::filesystem::path& path, const ReadOptions& options,
                     const Convert& convert, const Visit& visit) {
  ReadReport report;
  LineReader line(path, options.max_line_bytes);
  while ((options.max_rows <= 0 || report.rows < options.max_rows) && line.next()) {
    if (!line.too_long() && strip_edges(line.text()).empty()) {
      ++report.blank_lines;
      continue;
    }
    std::optional<decltype(convert(JsonValue(), 0))> row;
    try {
      row = convert(parse_row(line, options.max_line_bytes), line.number());
    } catch (const RowError& error) {
      RowProblem problem{path.string(), line.number(), error.column, error.what()};
      if (options.policy == RowPolicy::kStrict) {
        throw DataError(problem.text());
      }
      ++report.bad_rows;
      if (static_cast<std::int64_t>(report.problems.size()) < options.max_problems) {
        report.problems.push_back(std::move(problem));
      }
      continue;
    }
    ++report.rows;
    visit(*std::move(row));
  }
  return report;
}

}  // namespace

ReadReport for_each_call_example(const std::filesystem::path& path,
                                 const std::function<void(CallExample)>& visit,
                                 const ReadOptions& options) {
  return read_rows(path, options, to_call_example, visit);
}

ReadReport for_each_pretrain_example(const std::filesystem::path& path,
                                     const std::function<void(PretrainExample)>& visit,
                                     const ReadOptions& options) {
  return read_rows(path, options, to_pretrain_example, visit);
}

ReadReport for_each_text(const std::filesystem::path& path,
                         const std::function<void(std::string_view)>& visit,
                         const ReadOptions& options) {
  return read_rows(path, options, to_texts, [&visit](const std::vector<std::string>& texts) {
    for (const std::string& text : texts) {
      const std::string_view stripped = strip_edges(text);
      if (!stripped.empty()) {
        visit(stripped);
      }
    }
  });
}

std::vector<CallExample> read_call_examples(const std::filesystem::path& path) {
  std::vector<CallExample> examples;
  for_each_call_example(path, [&](CallExample row) { examples.push_back(std::move(row)); });
  return examples;
}

std::vector<PretrainExample> read_pretrain_examples(const std::filesystem::path& path) {
  std::vector<PretrainExample> examples;
  for_each_pretrain_example(path, [&](PretrainExample row) { examples.push_back(std::move(row)); });
  return examples;
}

std::string to_jsonl(const CallExample& example) {
  const JsonValue row = JsonValue::object({{"query", JsonValue::string(example.query)},
                                           {"tools", JsonValue::string(example.tools)},
                                           {"answers", JsonValue::string(example.answers)}});
  return write_compact(row, JsonEscapes::kUtf8) + "\n";
}

}  // namespace needle
