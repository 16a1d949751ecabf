#include "needle/server/connection.h"

#include <algorithm>
#include <array>
#include <cerrno>
#include <cstring>
#include <utility>

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

namespace needle {

Connection::Connection(int socket, const ServerLimits& limits, const std::atomic<bool>& stopping)
    : socket_(socket), limits_(limits), stopping_(stopping) {
  const int on = 1;  // events of a stream go out at once; fails on sockets that are not TCP
  ::setsockopt(socket_, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Connection::~Connection() { ::close(socket_); }

bool Connection::wait(short events, Clock::time_point until) const {
  for (;;) {
    const auto left = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    pollfd descriptor{.fd = socket_, .events = events, .revents = 0};
    const int ready = ::poll(&descriptor, 1, static_cast<int>(std::clamp<long>(left, 0, 60'000)));
    if (ready > 0) {
      return true;
    }
    if (left <= 0 || (ready < 0 && errno != EINTR)) {
      return false;
    }
  }
}

bool Connection::receive() {
  std::array<char, 16384> bytes;
  const ssize_t count = ::recv(socket_, bytes.data(), bytes.size(), 0);
  if (count <= 0) {
    return false;
  }
  buffer_.append(bytes.data(), static_cast<std::size_t>(count));
  return true;
}

Connection::Head Connection::wait_for_head() {
  send_held();
  buffer_.erase(0, read_);
  read_ = 0;
  const auto idle_until = Clock::now() + std::chrono::milliseconds(limits_.idle_ms);
  while (buffer_.empty() &&
         !wait(POLLIN, std::min(idle_until, Clock::now() + std::chrono::milliseconds(100)))) {
    if (stopping_ || Clock::now() >= idle_until) {
      return Head::kClosed;
    }
  }
  const auto whole_until = Clock::now() + std::chrono::milliseconds(limits_.slow_client_ms);
  std::size_t end = 0;
  while ((end = buffer_.find("\r\n\r\n")) == std::string::npos) {
    if (buffer_.size() > limits_.head_bytes) {
      return Head::kTooLong;
    }
    if (!wait(POLLIN, whole_until)) {
      return Head::kSlow;
    }
    if (!receive()) {
      return Head::kClosed;
    }
  }
  if (end > limits_.head_bytes) {
    return Head::kTooLong;
  }
  // Chunks have heads of their own, hence twice.
  budget_ = end + 4 + 2 * limits_.body_bytes;
  deadline_ = Clock::now() + std::chrono::milliseconds(limits_.slow_client_ms);
  hold_ = true;
  return Head::kWhole;
}

bool Connection::client_gone() const {
  pollfd descriptor{.fd = socket_, .events = POLLRDHUP, .revents = 0};
  return ::poll(&descriptor, 1, 0) > 0 &&
         (descriptor.revents & (POLLRDHUP | POLLHUP | POLLERR)) != 0;
}

bool Connection::from_this_machine() const {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getpeername(socket_, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
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

ssize_t Connection::read(char* bytes, std::size_t size) {
  if (read_ == buffer_.size()) {
    buffer_.clear();
    read_ = 0;
    send_held();  // "100 Continue", without which the body does not come
    slow = !wait(POLLIN, deadline_);
    if (slow || !receive()) {
      return -1;
    }
  }
  const std::size_t count = std::min({size, buffer_.size() - read_, budget_});
  if (count == 0) {
    return -1;
  }
  std::memcpy(bytes, buffer_.data() + read_, count);
  read_ += count;
  budget_ -= count;
  return static_cast<ssize_t>(count);
}

ssize_t Connection::write(const char* bytes, std::size_t size) {
  if (hold_) {
    hold_ = false;
    held_.assign(bytes, size);
    return static_cast<ssize_t>(size);
  }
  if (held_.empty()) {
    return send_all(bytes, size) ? static_cast<ssize_t>(size) : -1;
  }
  held_.append(bytes, size);
  return send_held() ? static_cast<ssize_t>(size) : -1;
}

bool Connection::send_held() {
  const std::string held = std::exchange(held_, {});
  return send_all(held.data(), held.size());
}

bool Connection::send_all(const char* bytes, std::size_t size) {
  const auto until = Clock::now() + std::chrono::milliseconds(limits_.slow_client_ms);
  std::size_t sent = 0;
  while (sent < size) {
    const ssize_t count = ::send(socket_, bytes + sent, size - sent, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count > 0) {
      sent += static_cast<std::size_t>(count);
    } else if ((errno != EAGAIN && errno != EINTR) || !wait(POLLOUT, until)) {
      return false;
    }
  }
  return true;
}

void Connection::finish() {
  send_held();
  ::shutdown(socket_, SHUT_WR);
  const auto until = Clock::now() + std::chrono::seconds(1);
  do {
    buffer_.clear();
  } while (Clock::now() < until && wait(POLLIN, until) && receive());
}

// Nobody asks for addresses: nothing is decided by them and nothing is logged.
void Connection::get_remote_ip_and_port(std::string& ip, int& port) const {
  ip.clear();
  port = 0;
}
void Connection::get_local_ip_and_port(std::string& ip, int& port) const {
  ip.clear();
  port = 0;
}

}  // namespace needle
