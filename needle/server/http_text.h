// HTTP/1.1's text (RFC 9112): heads of requests and replies, without a socket.
#pragma once

#include <cstddef>
#include <optional>
#include <string>
#include <string_view>

#include "needle/server/http.h"

namespace needle {

struct RequestHead {
  HttpRequest request;      // without its body
  bool version_1_1 = true;  // else 1.0, which knows no chunks
  bool keep_alive = true;   // the client will go on after the reply
  bool chunked = false;
  std::size_t length = 0;         // of the body, unless it comes in chunks; SIZE_MAX: unreadable
  bool expects_continue = false;  // the client waits to be told to send the body

  bool has_body() const { return chunked || length > 0; }
};

// `text` ends with the empty line. Nothing if it is no head of a request: also where a header goes
// on in the next line, a name is followed by a space, or a byte is not allowed where it stands. The
// path is decoded and without "?" and what follows. Two headers of one name become one, with ", "
// between, so that two lengths cannot be read; more than 200 are none.
std::optional<RequestHead> parse_request_head(std::string_view text);

struct ReplyFraming {
  bool keep_alive = true;
  bool version_1_1 = true;     // of the request
  int keep_alive_seconds = 0;  // how long the server waits for the next request
};

// Status line, headers and empty line. A stream's body comes in chunks, to a client of 1.0 until
// the end of the connection.
std::string write_reply_head(const HttpReply& reply, const ReplyFraming& framing);

// A piece of a body that is sent in chunks; "" ends it.
std::string write_chunk(std::string_view bytes);

}  // namespace needle
