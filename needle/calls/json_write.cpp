// The writing half of json_value.h.
#include <algorithm>
#include <numeric>

#include "needle/calls/json_value.h"
#include "needle/calls/utf8.h"

namespace needle {
namespace {

// Positions of the members, ordered by key.
std::vector<std::size_t> sorted_by_key(const JsonValue::Object& members) {
  std::vector<std::size_t> order(members.size());
  std::iota(order.begin(), order.end(), std::size_t{0});
  std::sort(order.begin(), order.end(),
            [&](std::size_t a, std::size_t b) { return members[a].first < members[b].first; });
  return order;
}

constexpr char kHexDigits[] = "0123456789abcdef";

void append_unicode_escape(std::string& out, std::uint32_t code_unit) {
  out += "\\u";
  for (int shift = 12; shift >= 0; shift -= 4) {
    out.push_back(kHexDigits[(code_unit >> shift) & 0xF]);
  }
}

// A surrogate in WTF-8 is ED A0..BF 80..BF.
bool is_surrogate_at(std::string_view text, std::size_t position) {
  const auto byte = [&](std::size_t i) { return static_cast<unsigned char>(text[position + i]); };
  return text.size() - position >= 3 && byte(0) == 0xED && byte(1) >= 0xA0 && byte(1) <= 0xBF &&
         byte(2) >= 0x80 && byte(2) <= 0xBF;
}

void append_code_point(std::string& out, std::uint32_t code_point, JsonEscapes escapes) {
  if (escapes == JsonEscapes::kUtf8) {
    append_utf8(out, code_point);
  } else if (code_point < 0x10000) {
    append_unicode_escape(out, code_point);
  } else {
    append_unicode_escape(out, 0xD800 + ((code_point - 0x10000) >> 10));
    append_unicode_escape(out, 0xDC00 + ((code_point - 0x10000) & 0x3FF));
  }
}

struct WriteStyle {
  std::string_view comma = ",";
  std::string_view colon = ":";
  JsonEscapes escapes = JsonEscapes::kAscii;
  bool sort_keys = false;
};

void append_value(std::string& out, const JsonValue& value, const WriteStyle& style) {
  switch (value.kind()) {
    case JsonValue::Kind::kNull:
      out += "null";
      return;
    case JsonValue::Kind::kBool:
      out += value.as_bool() ? "true" : "false";
      return;
    case JsonValue::Kind::kInteger:
    case JsonValue::Kind::kFloat:
      out += value.number_text();
      return;
    case JsonValue::Kind::kString:
      append_json_string(out, value.as_string(), style.escapes);
      return;
    case JsonValue::Kind::kArray: {
      std::string_view separator;
      out.push_back('[');
      for (const JsonValue& item : value.items()) {
        out += separator;
        separator = style.comma;
        append_value(out, item, style);
      }
      out.push_back(']');
      return;
    }
    case JsonValue::Kind::kObject: {
      const JsonValue::Object& members = value.members();
      const auto order = style.sort_keys ? sorted_by_key(members) : std::vector<std::size_t>{};
      std::string_view separator;
      out.push_back('{');
      for (std::size_t i = 0; i < members.size(); ++i) {
        const auto& [key, member] = members[style.sort_keys ? order[i] : i];
        out += separator;
        separator = style.comma;
        append_json_string(out, key, style.escapes);
        out += style.colon;
        append_value(out, member, style);
      }
      out.push_back('}');
      return;
    }
  }
}

std::string write(const JsonValue& value, const WriteStyle& style) {
  std::string out;
  append_value(out, value, style);
  return out;
}

}  // namespace

void append_json_string(std::string& out, std::string_view text, JsonEscapes escapes) {
  out.push_back('"');
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t plain = json_plain_length(text.substr(at));
    out.append(text, at, plain);
    at += plain;
    if (at == text.size()) {
      break;
    }
    const auto byte = static_cast<unsigned char>(text[at]);
    if (byte >= 0x80) {
      const std::size_t length = utf8_length_at(text, at);
      if (length > 0) {
        append_code_point(out, utf8_code_point_at(text, at), escapes);
        at += length;
      } else if (is_surrogate_at(text, at)) {
        append_unicode_escape(out, 0xD000U |
                                       ((static_cast<unsigned char>(text[at + 1]) & 0x3FU) << 6) |
                                       (static_cast<unsigned char>(text[at + 2]) & 0x3FU));
        at += 3;
      } else {
        append_code_point(out, 0xFFFD, escapes);
        ++at;
      }
      continue;
    }
    switch (byte) {
      case '"':
        out += "\\\"";
        break;
      case '\\':
        out += "\\\\";
        break;
      case '\n':
        out += "\\n";
        break;
      case '\r':
        out += "\\r";
        break;
      case '\t':
        out += "\\t";
        break;
      case '\b':
        out += "\\b";
        break;
      case '\f':
        out += "\\f";
        break;
      default:
        if (byte < 0x20 || (byte == 0x7F && escapes == JsonEscapes::kAscii)) {
          append_unicode_escape(out, byte);
        } else {
          out.push_back(static_cast<char>(byte));
        }
    }
    ++at;
  }
  out.push_back('"');
}

std::string write_compact(const JsonValue& value, JsonEscapes escapes) {
  return write(value, {.escapes = escapes});
}

void append_compact(std::string& out, const JsonValue& value, JsonEscapes escapes) {
  append_value(out, value, {.escapes = escapes});
}

std::string write_spaced(const JsonValue& value, JsonEscapes escapes) {
  return write(value, {.comma = ", ", .colon = ": ", .escapes = escapes});
}

std::string write_canonical(const JsonValue& value) { return write(value, {.sort_keys = true}); }

std::string excerpt(const JsonValue& value, std::size_t most_bytes) {
  std::string text = write_compact(value);
  if (text.size() > most_bytes) {
    text.resize(most_bytes);
    text += "...";
  }
  return text;
}

std::string compact_json_text(std::string_view text, JsonEscapes escapes) {
  const JsonParseResult parsed = parse_json_value(text);
  return parsed.value ? write_compact(*parsed.value, escapes) : std::string(text);
}

}  // namespace needle
