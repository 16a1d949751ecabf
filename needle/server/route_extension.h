// Routes besides the API's, all below one path: what the page needs.
#pragma once

#include <string_view>
#include <vector>

#include "needle/server/http.h"

namespace needle {

// A route as /openapi.json writes it: "/v1/models/{model}", each {name} standing for one part.
struct RouteName {
  std::string_view method;
  std::string_view path;
  bool open = false;  // answered without a key
};

// Thread-safe.
class RouteExtension {
 public:
  virtual ~RouteExtension() = default;
  virtual bool owns(std::string_view path) const = 0;
  virtual std::vector<RouteName> routes() const = 0;
  // Throws ApiError for what can be refused before the body is read. Key, Host and Origin were
  // checked as for every route.
  virtual void check_head(const HttpRequest& request) const = 0;
  // Throws as the API's routes do.
  virtual HttpReply handle(const HttpRequest& request) = 0;
};

}  // namespace needle
