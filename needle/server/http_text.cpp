#include "needle/server/http_text.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <iterator>
#include <utility>

namespace needle {
namespace {

bool is_token(std::string_view text) {
  return !text.empty() && std::ranges::all_of(text, [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') ||
           std::string_view("!#$%&'*+-.^_`|~").find(c) != std::string_view::npos;
  });
}

// What would let one header pass for two. Other control characters are for those who use the value.
bool is_field_value(std::string_view text) {
  return text.find_first_of(std::string_view("\r\n\0", 3)) == std::string_view::npos;
}

int hex_digit(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

// %41 becomes A; what is no such escape stays.
std::string decode_path(std::string_view target) {
  target = target.substr(0, target.find('?'));
  std::string path;
  path.reserve(target.size());
  for (std::size_t i = 0; i < target.size(); ++i) {
    const bool escape = target[i] == '%' && i + 2 < target.size();
    const int high = escape ? hex_digit(target[i + 1]) : -1;
    const int low = escape ? hex_digit(target[i + 2]) : -1;
    if (high >= 0 && low >= 0) {
      path.push_back(static_cast<char>(high * 16 + low));
      i += 2;
    } else {
      path.push_back(target[i]);
    }
  }
  return path;
}

// Up to the next CRLF, which goes, too.
std::string_view take_line(std::string_view& text) {
  const std::size_t end = std::min(text.find("\r\n"), text.size());
  const std::string_view line = text.substr(0, end);
  text.remove_prefix(std::min(text.size(), end + 2));
  return line;
}

std::string_view trimmed(std::string_view text) {
  const std::size_t first = std::min(text.find_first_not_of(" \t"), text.size());
  text.remove_prefix(first);
  return text.substr(0, text.find_last_not_of(" \t") + 1);
}

// A comma-separated list has this word in it.
bool lists(std::string_view list, std::string_view word) {
  while (!list.empty()) {
    const std::size_t comma = std::min(list.find(','), list.size());
    if (same_header_text(trimmed(list.substr(0, comma)), word)) {
      return true;
    }
    list.remove_prefix(std::min(list.size(), comma + 1));
  }
  return false;
}

std::size_t parse_length(std::string_view text) {
  std::size_t length = 0;
  const char* const end = text.data() + text.size();
  const auto read = std::from_chars(text.data(), end, length);
  return text.empty() ? 0 : read.ec == std::errc() && read.ptr == end ? length : SIZE_MAX;
}

bool parse_request_line(std::string_view line, RequestHead& head) {
  const std::size_t method = line.find(' ');
  const std::size_t target = line.rfind(' ');
  if (method == std::string_view::npos || target <= method + 1) {
    return false;
  }
  const std::string_view version = line.substr(target + 1);
  const std::string_view path = line.substr(method + 1, target - method - 1);
  const bool printable = std::ranges::all_of(path, [](char c) { return c > ' ' && c != '\x7f'; });
  if (!is_token(line.substr(0, method)) || !printable ||
      (version != "HTTP/1.1" && version != "HTTP/1.0")) {
    return false;
  }
  head.request.method = line.substr(0, method);
  head.request.path = decode_path(path);
  head.version_1_1 = version == "HTTP/1.1";
  return true;
}

bool parse_header_line(std::string_view line, HttpHeaders& headers) {
  const std::size_t colon = line.find(':');
  if (colon == std::string_view::npos || !is_token(line.substr(0, colon))) {
    return false;
  }
  const std::string_view value = trimmed(line.substr(colon + 1));
  if (!is_field_value(value)) {
    return false;
  }
  const auto [place, fresh] = headers.try_emplace(line.substr(0, colon), value);
  if (!fresh) {
    place->second += ", ";
    place->second += value;
  }
  return true;
}

std::string_view reason_of(int status) {
  switch (status) {
    case 200:
      return "OK";
    case 204:
      return "No Content";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 403:
      return "Forbidden";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 409:
      return "Conflict";
    case 413:
      return "Payload Too Large";
    case 415:
      return "Unsupported Media Type";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 499:
      return "Client Closed Request";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 504:
      return "Gateway Timeout";
    case 507:
      return "Insufficient Storage";
    default:
      return status < 400 ? "Done" : "Error";
  }
}

void add_header(std::string& out, std::string_view name, std::string_view value) {
  out += name;
  out += ": ";
  for (const char c : value) {  // one line, whatever it was made of
    out.push_back(c == '\r' || c == '\n' ? ' ' : c);
  }
  out += "\r\n";
}

}  // namespace

std::optional<RequestHead> parse_request_head(std::string_view text) {
  RequestHead head;
  if (!parse_request_line(take_line(text), head)) {
    return {};
  }
  constexpr std::size_t kMostHeaders = 200;
  for (std::string_view line = take_line(text); !line.empty(); line = take_line(text)) {
    if (!parse_header_line(line, head.request.headers) ||
        head.request.headers.size() > kMostHeaders) {
      return {};
    }
  }
  const std::string_view connection = head.request.header("Connection");
  head.keep_alive =
      head.version_1_1 ? !lists(connection, "close") : lists(connection, "keep-alive");
  head.chunked = !head.request.header("Transfer-Encoding").empty();
  head.length = parse_length(head.request.header("Content-Length"));
  head.expects_continue =
      head.version_1_1 && same_header_text(head.request.header("Expect"), "100-continue");
  return head;
}

std::string write_reply_head(const HttpReply& reply, const ReplyFraming& framing) {
  std::string out;
  out.reserve(512);
  out += "HTTP/1.1 ";
  out += std::to_string(reply.status);
  out += ' ';
  out += reason_of(reply.status);
  out += "\r\n";
  if (reply.status != 204) {
    add_header(out, "Content-Type", reply.content_type);
    if (!reply.stream) {
      add_header(out, "Content-Length", std::to_string(reply.body.size()));
    } else if (framing.version_1_1) {
      add_header(out, "Transfer-Encoding", "chunked");
    }
  }
  for (const auto& [name, value] : reply.headers) {
    add_header(out, name, value);
  }
  if (!framing.keep_alive) {
    add_header(out, "Connection", "close");
  } else {
    if (!framing.version_1_1) {
      add_header(out, "Connection", "keep-alive");
    }
    add_header(out, "Keep-Alive", "timeout=" + std::to_string(framing.keep_alive_seconds));
  }
  out += "\r\n";
  return out;
}

std::string write_chunk(std::string_view bytes) {
  char digits[16];
  const auto end = std::to_chars(std::begin(digits), std::end(digits), bytes.size(), 16).ptr;
  std::string chunk(digits, end);
  chunk += "\r\n";
  chunk += bytes;
  chunk += "\r\n";
  return chunk;
}

}  // namespace needle
