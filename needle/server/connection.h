// One client's socket with the limits that cpp-httplib 0.11 lacks: a whole head and a whole body
// have a time and a size, so that a client that sends a byte now and then holds a thread no longer
// than any other.
#pragma once

#include <atomic>
#include <chrono>
#include <string>
#include <string_view>

#include <httplib.h>

#include "needle/server/limits.h"

namespace needle {

class Connection final : public httplib::Stream {
 public:
  // Owns the socket. `stopping`: no further request is waited for once it is set.
  Connection(int socket, const ServerLimits& limits, const std::atomic<bool>& stopping);
  ~Connection() override;
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;

  enum class Head { kWhole, kClosed, kTooLong, kSlow };
  // Waits for the next request's head; read() gives it, and then the body.
  Head wait_for_head();

  bool client_gone() const;
  bool from_this_machine() const;  // the client's address is a loopback one
  // Sends what is left and waits a moment for the client to read it: closing at once would throw
  // away a reply to a client that is still sending.
  void finish();

  bool is_readable() const override { return true; }
  bool is_writable() const override { return !client_gone(); }
  ssize_t read(char* bytes, std::size_t size) override;
  ssize_t write(const char* bytes, std::size_t size) override;
  void get_remote_ip_and_port(std::string& ip, int& port) const override;
  void get_local_ip_and_port(std::string& ip, int& port) const override;
  socket_t socket() const override { return socket_; }

  bool refused = false;  // before its body was read to the end: the connection cannot go on
  bool slow = false;     // the body did not come in time

 private:
  using Clock = std::chrono::steady_clock;
  bool wait(short events, Clock::time_point until) const;
  bool receive();  // more bytes into the buffer; false at the end
  bool send_all(const char* bytes, std::size_t size);
  bool send_held();

  int socket_;
  const ServerLimits& limits_;
  const std::atomic<bool>& stopping_;
  std::string buffer_;
  std::size_t read_ = 0;    // of the buffer
  std::size_t budget_ = 0;  // bytes that the request may still have
  Clock::time_point deadline_;
  // A reply's first piece, which is its head, goes out with the second: one packet and one waking
  // of the client instead of two.
  bool hold_ = false;
  std::string held_;
};

}  // namespace needle
