#include "needle/server/http.h"

#include <algorithm>

namespace needle {
namespace {

char lower(char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; }

}  // namespace

bool same_header_text(std::string_view a, std::string_view b) {
  return std::ranges::equal(a, b, {}, lower, lower);
}

HttpHeaders::const_iterator HttpHeaders::find(std::string_view name) const {
  return std::ranges::find_if(
      items_, [name](const Item& item) { return same_header_text(item.first, name); });
}

std::pair<HttpHeaders::iterator, bool> HttpHeaders::try_emplace(std::string_view name,
                                                                std::string_view value) {
  const auto found = find(name);
  if (found != items_.end()) {
    return {items_.begin() + (found - items_.begin()), false};
  }
  constexpr std::size_t kUsual = 8;
  if (items_.empty()) {
    items_.reserve(kUsual);
  }
  items_.emplace_back(name, value);
  return {items_.end() - 1, true};
}

std::string_view HttpRequest::header(std::string_view name) const {
  const auto found = headers.find(name);
  return found == headers.end() ? std::string_view() : std::string_view(found->second);
}

}  // namespace needle
