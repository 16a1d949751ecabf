#include "needle/server/http_server.h"

#include <atomic>
#include <cerrno>
#include <chrono>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <netdb.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/server/api_error.h"
#include "needle/server/connection.h"
#include "needle/server/http_text.h"

namespace needle {
namespace {

// A thread for each connection, made when one comes and none is idle.
class ConnectionThreads {
 public:
  explicit ConnectionThreads(std::size_t most) : most_(most) {}

  ~ConnectionThreads() {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      ready_.notify_all();
    }
    for (std::thread& thread : threads_) {
      thread.join();
    }
  }

  ConnectionThreads(const ConnectionThreads&) = delete;
  ConnectionThreads& operator=(const ConnectionThreads&) = delete;

  // False if all are at work and there may be no more.
  bool serve(std::function<void()> connection) {
    const std::lock_guard lock(mutex_);
    if (idle_ <= jobs_.size() && threads_.size() >= most_) {
      return false;
    }
    jobs_.push_back(std::move(connection));
    if (idle_ < jobs_.size()) {
      threads_.emplace_back([this] { work(); });
    }
    ready_.notify_one();
    return true;
  }

 private:
  void work() {
    std::unique_lock lock(mutex_);
    for (;;) {
      ++idle_;
      ready_.wait(lock, [&] { return ended_ || !jobs_.empty(); });
      --idle_;
      if (jobs_.empty()) {
        return;
      }
      const auto job = std::move(jobs_.front());
      jobs_.pop_front();
      lock.unlock();
      job();
      lock.lock();
    }
  }

  const std::size_t most_;
  std::mutex mutex_;
  std::condition_variable ready_;
  std::deque<std::function<void()>> jobs_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool ended_ = false;
};

// A socket that listens there, or -1.
int listening_socket(const addrinfo& address) {
  const int listener = ::socket(address.ai_family, address.ai_socktype | SOCK_CLOEXEC, 0);
  if (listener < 0) {
    return -1;
  }
  const int on = 1;
  const int off = 0;
  // Not REUSEPORT: a second server must see the port taken.
  ::setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
  if (address.ai_family == AF_INET6) {  // "::" is every address, those of IPv4, too
    ::setsockopt(listener, IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof off);
  }
  constexpr int kBacklog = 512;
  if (::bind(listener, address.ai_addr, address.ai_addrlen) != 0 ||
      ::listen(listener, kBacklog) != 0) {
    ::close(listener);
    return -1;
  }
  return listener;
}

int listening_socket(const std::string& host, int port) {
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  if (::getaddrinfo(host.c_str(), std::to_string(port).c_str(), &hints, &found) != 0) {
    return -1;
  }
  int listener = -1;
  for (const addrinfo* address = found; address != nullptr && listener < 0;
       address = address->ai_next) {
    listener = listening_socket(*address);
  }
  ::freeaddrinfo(found);
  return listener;
}

int port_of(int listener) {
  sockaddr_storage address{};
  socklen_t length = sizeof address;
  if (::getsockname(listener, reinterpret_cast<sockaddr*>(&address), &length) != 0) {
    return -1;
  }
  return ntohs(address.ss_family == AF_INET6
                   ? reinterpret_cast<const sockaddr_in6&>(address).sin6_port
                   : reinterpret_cast<const sockaddr_in&>(address).sin_port);
}

// Of what a client got wrong before there was a request that a service could answer.
HttpReply refusal(Connection::Head head) {
  return head == Connection::Head::kSlow
             ? ApiError(408, "the request's head did not come in time").to_reply()
             : ApiError(431, "the request's head is longer than allowed").to_reply();
}

HttpReply refusal(Connection::Body body) {
  switch (body) {
    case Connection::Body::kSlow:
      return ApiError(408, "the request's body did not come in time").to_reply();
    case Connection::Body::kTooLong:
      return ApiError(413, "the body is longer than allowed").to_reply();
    default:
      return ApiError(400, "the body's chunks are malformed").to_reply();
  }
}

}  // namespace

class HttpServer::Wire {
 public:
  Wire(Service& service, HttpServerOptions options)
      : service_(service), options_(std::move(options)) {}

  ~Wire() {
    if (listener_ >= 0) {
      ::close(listener_);
    }
  }

  Wire(const Wire&) = delete;
  Wire& operator=(const Wire&) = delete;

  int bind() {
    listener_ = listening_socket(options_.host, options_.port);
    if (listener_ < 0) {
      throw FileError(
          format("{}:{}: cannot listen there; another program has the port, or the "
                 "address is not this machine's. Choose another with --port",
                 options_.host, options_.port));
    }
    return port_of(listener_);
  }

  void run() {
    ConnectionThreads threads(options_.connections);
    while (!stopping_) {
      const int socket = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (socket >= 0) {
        if (!threads.serve([this, socket] { serve(socket); })) {
          turn_away(socket);
        }
        continue;
      }
      if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));  // until others have ended
      } else if (errno == EBADF || errno == EINVAL || errno == ENOTSOCK) {
        if (!stopping_) {
          log_error("no connection can be accepted any more: {}", std::strerror(errno));
        }
        return;
      }  // else the client's own failure, or its network's
    }
  }

  void end() {
    stopping_ = true;
    service_.close();
    ::shutdown(listener_, SHUT_RDWR);  // wakes accept4
  }

  void serve(int socket) {
    Connection connection(socket, service_.options().limits, stopping_);
    try {
      while (serve_request(connection)) {
      }
    } catch (const std::exception& error) {  // no memory, say: the others go on
      log_error("a connection was given up: {}", error.what());
    }
    connection.finish();
  }

 private:
  void turn_away(int socket) {
    Connection connection(socket, service_.options().limits, stopping_);
    HttpReply reply = ApiError(503, "too many connections").to_reply();
    reply.headers["Retry-After"] = "1";
    send(connection, reply, {}, /*keep_alive=*/false);
  }

  // False once the connection is over.
  bool serve_request(Connection& connection) {
    const Connection::Head got = connection.wait_for_head();
    if (got == Connection::Head::kClosed) {
      return false;
    }
    if (got != Connection::Head::kWhole) {
      return send(connection, refusal(got), {}, false);
    }
    auto head = parse_request_head(connection.head());
    if (!head) {
      return send(connection, ApiError(400, "this is no HTTP request").to_reply(), {}, false);
    }
    HttpRequest& request = head->request;
    request.from_this_machine = connection.from_this_machine();
    request.client_gone = [&connection] { return connection.client_gone(); };
    if (auto refused = service_.check_head(request)) {  // its body, if any, is not read
      return send(connection, *refused, *head, refused->status < 400 && !head->has_body());
    }
    if (request.method == "POST") {
      const Connection::Body body = connection.read_body(*head, request.body);
      if (body == Connection::Body::kClosed) {
        return false;
      }
      if (body != Connection::Body::kWhole) {
        return send(connection, refusal(body), *head, false);
      }
    }
    const bool unread = request.method != "POST" && head->has_body();
    return send(connection, service_.handle(request), *head, head->keep_alive && !unread);
  }

  // True if the connection goes on.
  bool send(Connection& connection, const HttpReply& reply, const RequestHead& request,
            bool keep_alive) {
    keep_alive = keep_alive && !stopping_ && (!reply.stream || request.version_1_1);
    const std::string head = write_reply_head(
        reply, {.keep_alive = keep_alive,
                .version_1_1 = request.version_1_1,
                .keep_alive_seconds = static_cast<int>(service_.options().limits.idle_ms / 1000)});
    if (request.request.method == "HEAD" || reply.status == 204) {
      return connection.send(head) && keep_alive;
    }
    if (!reply.stream) {
      return connection.send(head, reply.body) && keep_alive;
    }
    return send_stream(connection, head, reply, request.version_1_1) && keep_alive;
  }

  static bool send_stream(Connection& connection, std::string_view head, const HttpReply& reply,
                          bool chunked) {
    bool open = true;
    const auto write = [&](std::string_view bytes) {
      if (bytes.empty()) {  // as a chunk it would be the last
        return open;
      }
      open = open &&
             (chunked ? connection.send(head, write_chunk(bytes)) : connection.send(head, bytes));
      head = {};
      return open;
    };
    reply.stream(write);
    if (open && (chunked || !head.empty())) {
      open = connection.send(head, chunked ? write_chunk({}) : "");
    }
    return open;
  }

  Service& service_;
  const HttpServerOptions options_;
  int listener_ = -1;
  std::atomic<bool> stopping_ = false;
};

HttpServer::HttpServer(Service& service, HttpServerOptions options)
    : wire_(std::make_unique<Wire>(service, std::move(options))) {}
HttpServer::~HttpServer() = default;

int HttpServer::bind() { return wire_->bind(); }
void HttpServer::run() { wire_->run(); }
void HttpServer::stop() { wire_->end(); }
void HttpServer::serve(int socket) { wire_->serve(socket); }

}  // namespace needle
