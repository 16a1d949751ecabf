#include "needle/server/api_error.h"

#include <utility>

namespace needle {
namespace {

std::string_view error_type(int status) {
  switch (status) {
    case 401:
      return "authentication_error";
    case 403:
      return "permission_error";
    case 404:
      return "not_found_error";
    case 429:
      return "rate_limit_error";
    default:
      return status >= 500 ? "server_error" : "invalid_request_error";
  }
}

JsonValue text_or_null(const std::string& text) {
  return text.empty() ? JsonValue() : JsonValue::string(text);
}

}  // namespace

ApiError::ApiError(int status, const std::string& message, Place place)
    : Error(message), status_(status), place_(std::move(place)) {}

JsonValue ApiError::to_json() const {
  JsonValue error = JsonValue::object();
  error.set("message", JsonValue::string(what()));
  error.set("type", JsonValue::string(std::string(error_type(status_))));
  error.set("param", text_or_null(place_.param));
  error.set("code", text_or_null(place_.code));
  return JsonValue::object({{"error", std::move(error)}});
}

HttpReply ApiError::to_reply() const {
  HttpReply reply{.status = status_, .body = write_compact(to_json(), JsonEscapes::kUtf8)};
  if (retry_after_seconds > 0) {
    reply.headers["Retry-After"] = std::to_string(retry_after_seconds);
  }
  if (status_ == 401) {
    reply.headers["WWW-Authenticate"] = "Bearer";
  }
  return reply;
}

ApiError bad_request(const std::string& param, const std::string& message) {
  return {400, param.empty() ? message : format("{}: {}", param, message), {.param = param}};
}

}  // namespace needle
