// Requests and replies as the routes see them: no socket, no HTTP library.
#pragma once

#include <chrono>
#include <functional>
#include <map>
#include <string>
#include <string_view>

namespace needle {

// Header names compare without regard to case.
struct HeaderLess {
  using is_transparent = void;
  bool operator()(std::string_view a, std::string_view b) const;
};
using HttpHeaders = std::map<std::string, std::string, HeaderLess>;

struct HttpRequest {
  std::string method;  // "GET", "POST", ...
  std::string path;    // decoded, without the query part
  HttpHeaders headers;
  std::string body;
  bool from_this_machine = false;                            // the client runs here
  std::function<bool()> client_gone = [] { return false; };  // cheap: asked at every token

  // "" if absent.
  std::string_view header(std::string_view name) const;
};

struct HttpReply {
  int status = 200;
  std::string content_type = "application/json";
  HttpHeaders headers;
  std::string body;
  // A body of unknown length: called once, after the head was sent. `write` returns false when the
  // client is gone.
  using Write = std::function<bool(std::string_view bytes)>;
  std::function<void(const Write& write)> stream;
};

}  // namespace needle
