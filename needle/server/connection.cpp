#include "needle/server/connection.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <charconv>
#include <utility>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

namespace needle {
namespace {

constexpr std::chrono::milliseconds kLook(100);  // between two looks at what else may have happened

bool peer_is_this_machine(int socket) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(socket, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return false;
  }
  if (address.ss_family == AF_INET) {
    const auto& ipv4 = reinterpret_cast<const sockaddr_in&>(address);
    return (ntohl(ipv4.sin_addr.s_addr) >> 24) == IN_LOOPBACKNET;
  }
  if (address.ss_family == AF_INET6) {
    const auto& ipv6 = reinterpret_cast<const sockaddr_in6&>(address);
    return IN6_IS_ADDR_LOOPBACK(&ipv6.sin6_addr) ||
           (IN6_IS_ADDR_V4MAPPED(&ipv6.sin6_addr) && ipv6.sin6_addr.s6_addr[12] == IN_LOOPBACKNET);
  }
  return address.ss_family == AF_UNIX;
}

}  // namespace

Connection::Connection(int socket, const ServerLimits& limits, const std::atomic<bool>& stopping)
    : socket_(socket),
      from_this_machine_(peer_is_this_machine(socket)),
      limits_(limits),
      stopping_(stopping) {
  const int on = 1;  // events of a stream go out at once; fails on sockets that are not TCP
  ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
  const timeval look{.tv_sec = 0, .tv_usec = std::chrono::microseconds(kLook).count()};
  ::setsockopt(socket_, SOL_SOCKET, SO_RCVTIMEO, &look, sizeof look);
}

Connection::~Connection() { ::close(socket_); }

Connection::Received Connection::receive_once() {
  std::array<char, 16384> bytes;
  const ssize_t count = ::recv(socket_, bytes.data(), bytes.size(), 0);
  if (count > 0) {
    buffer_.append(bytes.data(), static_cast<std::size_t>(count));
    return Received::kBytes;
  }
  const bool nothing = count < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR);
  return nothing ? Received::kNothing : Received::kEnd;
}

Connection::Received Connection::receive(Clock::time_point until) {
  while (Clock::now() < until) {  // also where bytes come, one now and then
    if (const Received received = receive_once(); received != Received::kNothing) {
      return received;
    }
  }
  return Received::kNothing;
}

Connection::Head Connection::wait_for_head() {
  buffer_.erase(0, read_);
  read_ = 0;
  head_bytes_ = 0;
  const auto idle_until = Clock::now() + std::chrono::milliseconds(limits_.idle_ms);
  while (buffer_.empty()) {
    const Received received = receive_once();
    if (received == Received::kEnd ||
        (received == Received::kNothing && (stopping_ || Clock::now() >= idle_until))) {
      return Head::kClosed;
    }
  }
  const auto whole_until = Clock::now() + std::chrono::milliseconds(limits_.slow_client_ms);
  std::size_t end = 0;
  for (;;) {
    while (buffer_.starts_with("\r\n")) {  // after a body, as some old clients send it
      buffer_.erase(0, 2);
    }
    end = buffer_.find("\r\n\r\n");
    if (end != std::string::npos || buffer_.size() > limits_.head_bytes) {
      break;
    }
    const Received received = receive(whole_until);
    if (received != Received::kBytes) {
      return received == Received::kEnd ? Head::kClosed : Head::kSlow;
    }
  }
  if (end > limits_.head_bytes) {
    return Head::kTooLong;
  }
  head_bytes_ = read_ = end + 4;
  return Head::kWhole;
}

Connection::Body Connection::read_body(const RequestHead& head, std::string& body) {
  deadline_ = Clock::now() + std::chrono::milliseconds(limits_.slow_client_ms);
  lines_left_ = limits_.body_bytes + limits_.head_bytes;
  if (head.has_body() && head.expects_continue && read_ == buffer_.size() &&
      !send("HTTP/1.1 100 Continue\r\n\r\n")) {
    return Body::kClosed;
  }
  if (head.chunked) {
    return read_chunks(body);
  }
  return head.length > limits_.body_bytes ? Body::kTooLong : read_bytes(head.length, body);
}

Connection::Body Connection::receive_more() {
  buffer_.clear();
  read_ = 0;
  switch (receive(deadline_)) {
    case Received::kBytes:
      return Body::kWhole;
    case Received::kNothing:
      return Body::kSlow;
    case Received::kEnd:
      break;
  }
  return Body::kClosed;
}

Connection::Body Connection::read_bytes(std::size_t count, std::string& to) {
  while (count > 0) {
    if (read_ == buffer_.size()) {
      if (const Body more = receive_more(); more != Body::kWhole) {
        return more;
      }
    }
    const std::size_t here = std::min(count, buffer_.size() - read_);
    to.append(buffer_, read_, here);
    read_ += here;
    count -= here;
  }
  return Body::kWhole;
}

// Without its CRLF.
Connection::Body Connection::read_line(std::string& line) {
  line.clear();
  while (!line.ends_with("\r\n")) {
    if (lines_left_ == 0) {
      return Body::kTooLong;
    }
    --lines_left_;
    if (const Body read = read_bytes(1, line); read != Body::kWhole) {
      return read;
    }
  }
  line.resize(line.size() - 2);
  return Body::kWhole;
}

Connection::Body Connection::read_chunks(std::string& body) {
  std::string line;
  for (;;) {
    if (const Body read = read_line(line); read != Body::kWhole) {
      return read;
    }
    std::size_t size = 0;
    const auto [end, error] = std::from_chars(line.data(), line.data() + line.size(), size, 16);
    const std::string_view rest(end, static_cast<std::size_t>(line.data() + line.size() - end));
    if (error == std::errc::invalid_argument || (!rest.empty() && rest.front() != ';')) {
      return Body::kMalformed;
    }
    if (error != std::errc() || size > limits_.body_bytes - body.size()) {
      return Body::kTooLong;
    }
    if (size == 0) {
      break;
    }
    Body read = read_bytes(size, body);
    if (read == Body::kWhole) {
      read = read_line(line);
    }
    if (read != Body::kWhole) {
      return read;
    }
    if (!line.empty()) {
      return Body::kMalformed;
    }
  }
  do {  // headers after the last chunk say nothing here
    if (const Body read = read_line(line); read != Body::kWhole) {
      return read;
    }
  } while (!line.empty());
  return Body::kWhole;
}

bool Connection::client_gone() const {
  pollfd descriptor{.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return ::poll(&descriptor, 1, 0) > 0 &&
         (descriptor.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool Connection::wait_for_room(Clock::time_point until) const {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd descriptor{.fd = socket_, .events = POLLOUT, .revents = 0};
    const int ready = ::poll(&descriptor, 1, static_cast<int>(std::clamp<long>(left, 0, 60'000)));
    if (ready > 0) {
      return true;
    }
    if (left <= 0 || (ready < 0 && errno != EINTR)) {
      return false;
    }
  }
}

bool Connection::send(std::string_view head, std::string_view body) {
  const auto until = Clock::now() + std::chrono::milliseconds(limits_.slow_client_ms);
  while (!head.empty() || !body.empty()) {
    std::array<iovec, 2> parts = {
        {{.iov_base = const_cast<char*>(head.data()), .iov_len = head.size()},
         {.iov_base = const_cast<char*>(body.data()), .iov_len = body.size()}}};
    msghdr message{};
    message.msg_iov = parts.data();
    message.msg_iovlen = parts.size();
    const ssize_t count = ::sendmsg(socket_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count > 0) {
      const auto sent = static_cast<std::size_t>(count);
      const std::size_t of_head = std::min(sent, head.size());
      head.remove_prefix(of_head);
      body.remove_prefix(sent - of_head);
    } else if ((errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR) ||
               !wait_for_room(until)) {
      return false;
    }
  }
  return true;
}

void Connection::finish() {
  ::shutdown(socket_, SHUT_WR);
  const auto until = Clock::now() + std::chrono::seconds(1);
  do {
    buffer_.clear();
  } while (Clock::now() < until && receive(until) == Received::kBytes);
}

}  // namespace needle
