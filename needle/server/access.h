// Who may ask: API key, and the Host and Origin of a request, so that no web page that the user
// happens to visit can reach a server on this machine (DNS rebinding, cross-site requests).
#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "needle/server/http.h"

namespace needle {

struct AccessOptions {
  std::string api_key;                     // empty: none is asked for
  std::vector<std::string> allowed_hosts;  // names besides this machine's loopback; "*": any
  std::vector<std::string> cors_origins;   // "https://app.example"; "*": any
};

// Compares every byte whatever differs, so that the time taken tells only the length.
bool equal_in_constant_time(std::string_view a, std::string_view b);

// "example.org:80" and "[::1]:80" without port. "" if it is no host.
std::string_view host_name(std::string_view host);
bool is_loopback_name(std::string_view host);  // a name or an address without port

// Throws ApiError 403 for a strange Host or Origin, 401 without the right key. `open`: the path
// needs no key (the page and /health).
void check_access(const HttpRequest& request, const AccessOptions& options, bool open);

// The Access-Control headers of a reply: none unless the request's origin was allowed by name.
HttpHeaders cors_headers(const HttpRequest& request, const AccessOptions& options);

}  // namespace needle
