// One client's socket: reads requests and writes replies, HTTP/1.1 and 1.0. A whole head and a
// whole body have a time and a size, so that a client that sends a byte now and then holds a thread
// no longer than any other.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>

#include "needle/server/http.h"
#include "needle/server/http_text.h"
#include "needle/server/limits.h"

namespace needle {

// Used by one thread.
class Connection {
 public:
  // Owns the socket. `stopping`: no further request is waited for once it is set.
  Connection(int socket, const ServerLimits& limits, const std::atomic<bool>& stopping);
  ~Connection();
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  enum class Head { kWhole, kClosed, kTooLong, kSlow };
  // Waits for the next request's head, up to and with its empty line.
  Head wait_for_head();
  // Valid until read_body().
  std::string_view head() const { return std::string_view(buffer_).substr(0, head_bytes_); }

  enum class Body { kWhole, kClosed, kTooLong, kSlow, kMalformed };
  // Reads the body of the request whose head came last and adds it to `body`.
  Body read_body(const RequestHead& head, std::string& body);

  // `head` and what follows it in one packet where they fit, so that the client is woken once.
  // False if the client is gone or takes longer than it may.
  bool send(std::string_view head, std::string_view body = {});

  bool client_gone() const;
  bool from_this_machine() const {
    return from_this_machine_;
  }  // the client's address is a loopback one
  // Waits a moment for the client to read the last reply: closing at once would throw it away for a
  // client that is still sending.
  void finish();

 private:
  using Clock = std::chrono::steady_clock;
  enum class Received { kBytes, kNothing, kEnd };
  Received receive_once();  // into the buffer; waits a tenth of a second at most
  Received receive(Clock::time_point until);
  Body receive_more();  // after all of the buffer was read
  Body read_bytes(std::size_t count, std::string& to);
  Body read_line(std::string& line);
  Body read_chunks(std::string& body);
  bool wait_for_room(Clock::time_point until) const;

  const int socket_;
  const bool from_this_machine_;
  const ServerLimits& limits_;
  const std::atomic<bool>& stopping_;
  std::string buffer_;
  std::size_t head_bytes_ = 0;
  std::size_t read_ = 0;        // of the buffer
  Clock::time_point deadline_;  // of the body
  std::size_t lines_left_ = 0;  // bytes that chunks' own heads may have
};

}  // namespace needle
