// What a client is told when a request cannot be answered, in the shape of OpenAI's errors.
#pragma once

#include <string>

#include "needle/calls/json_value.h"
#include "needle/core/error.h"
#include "needle/server/http.h"

namespace needle {

class ApiError : public Error {
 public:
  struct Place {
    std::string code;   // "model_not_found"; "" becomes null
    std::string param;  // "tools[0].function.name"; "" becomes null
  };
  ApiError(int status, const std::string& message, Place place = {});

  int status() const { return status_; }
  // {"error":{"message","type","param","code"}}
  JsonValue to_json() const;
  HttpReply to_reply() const;

  int retry_after_seconds = 0;  // > 0: sent as Retry-After

 private:
  int status_;
  Place place_;
};

// 400 naming the field of the body.
ApiError bad_request(const std::string& param, const std::string& message);

}  // namespace needle
