#include "needle/server/access.h"

#include <algorithm>

#include "needle/server/api_error.h"

namespace needle {
namespace {

bool listed(const std::vector<std::string>& list, std::string_view name) {
  return std::ranges::any_of(list, [&](const std::string& item) {
    return item == "*" || (!HeaderLess()(item, name) && !HeaderLess()(name, item));
  });
}

// "http://host:port" without the scheme; "" if it is not of http or https ("null" is not).
std::string_view origin_host(std::string_view origin) {
  for (const std::string_view scheme : {"http://", "https://"}) {
    if (origin.starts_with(scheme)) {
      return origin.substr(scheme.size());
    }
  }
  return "";
}

}  // namespace

bool equal_in_constant_time(std::string_view a, std::string_view b) {
  unsigned difference = a.size() == b.size() ? 0 : 1;
  for (std::size_t i = 0; i < a.size(); ++i) {
    const char other = b.empty() ? '\0' : b[i % b.size()];
    difference |= static_cast<unsigned char>(a[i]) ^ static_cast<unsigned char>(other);
  }
  return difference == 0;
}

std::string_view host_name(std::string_view host) {
  if (host.starts_with('[')) {
    const std::size_t end = host.find(']');
    return end == std::string_view::npos ? "" : host.substr(1, end - 1);
  }
  return host.substr(0, host.find(':'));
}

bool is_loopback_name(std::string_view host) {
  const std::vector<std::string> names = {"localhost", "::1"};
  return listed(names, host) ||
         (host.starts_with("127.") && host.find_first_not_of("0123456789.") == host.npos);
}

void check_access(const HttpRequest& request, const AccessOptions& options, bool open) {
  const std::string_view host = request.header("Host");
  const std::string_view name = host_name(host);
  if (!is_loopback_name(name) && !listed(options.allowed_hosts, name)) {
    throw ApiError(403,
                   format("Host {}: this server answers to localhost only; start it with "
                          "--allow-host {} to permit the name",
                          host.substr(0, 100), name.empty() ? "NAME" : name.substr(0, 100)),
                   {.code = "host_not_allowed"});
  }
  const std::string_view origin = request.header("Origin");
  if (!origin.empty() && origin_host(origin) != host && !listed(options.cors_origins, origin)) {
    throw ApiError(403,
                   format("Origin {}: pages of other origins may not use this server; start it "
                          "with --cors-origin to permit one",
                          origin.substr(0, 100)),
                   {.code = "origin_not_allowed"});
  }
  if (open || options.api_key.empty()) {
    return;
  }
  constexpr std::string_view kBearer = "Bearer ";
  const std::string_view given = request.header("Authorization");
  if (!given.starts_with(kBearer) ||
      !equal_in_constant_time(given.substr(kBearer.size()), options.api_key)) {
    throw ApiError(401, "expected the header \"Authorization: Bearer KEY\" with this server's key",
                   {.code = "invalid_api_key"});
  }
}

HttpHeaders cors_headers(const HttpRequest& request, const AccessOptions& options) {
  const std::string_view origin = request.header("Origin");
  if (origin.empty() || !listed(options.cors_origins, origin)) {
    return {};
  }
  return {{"Access-Control-Allow-Origin", std::string(origin)},
          {"Access-Control-Allow-Headers", "Authorization, Content-Type"},
          {"Access-Control-Allow-Methods", "GET, POST, OPTIONS"},
          {"Vary", "Origin"}};
}

}  // namespace needle
