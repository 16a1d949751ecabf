// Requests and replies as the routes see them: no socket, no HTTP library.
#pragma once

#include <cstddef>
#include <functional>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace needle {

// Equal but for the case of ASCII letters, as names of headers are.
bool same_header_text(std::string_view a, std::string_view b);

// In order of insertion, no name twice. A list and no tree: a request has a handful, each of which
// would be memory of its own.
class HttpHeaders {
 public:
  using Item = std::pair<std::string, std::string>;  // name, value
  using iterator = std::vector<Item>::iterator;
  using const_iterator = std::vector<Item>::const_iterator;

  HttpHeaders() = default;
  HttpHeaders(std::initializer_list<Item> items) : items_(items) {}

  const_iterator begin() const { return items_.begin(); }
  const_iterator end() const { return items_.end(); }
  std::size_t size() const { return items_.size(); }
  const_iterator find(std::string_view name) const;
  // The item of that name; a new one if true.
  std::pair<iterator, bool> try_emplace(std::string_view name, std::string_view value);
  std::string& operator[](std::string_view name) { return try_emplace(name, {}).first->second; }

 private:
  std::vector<Item> items_;
};

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
