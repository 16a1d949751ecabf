#include "needle/server/http_server.h"

#include <atomic>
#include <condition_variable>
#include <list>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

#include <sys/socket.h>

#include "needle/server/api_error.h"
#include "needle/server/connection.h"

namespace needle {
namespace {

// cpp-httplib hands a handler its request, not the connection; both stay on one thread.
thread_local Connection* current_connection = nullptr;  // NOLINT
thread_local bool no_thread_left = false;               // NOLINT

HttpRequest to_request(const httplib::Request& from) {
  HttpRequest request{.method = from.method, .path = from.path};
  for (const auto& [name, value] : from.headers) {
    const auto [place, fresh] = request.headers.try_emplace(name, value);
    if (!fresh) {  // two of a header that counts match nothing
      place->second += ", " + value;
    }
  }
  request.from_this_machine = current_connection->from_this_machine();
  request.client_gone = [connection = current_connection] { return connection->client_gone(); };
  return request;
}

void send(HttpReply reply, httplib::Response& response) {
  response.status = reply.status;
  for (const auto& [name, value] : reply.headers) {
    response.set_header(name, value);
  }
  if (!reply.stream) {
    if (reply.status != 204) {
      response.set_content(reply.body, reply.content_type);
    }
    return;
  }
  response.set_chunked_content_provider(
      reply.content_type, [stream = std::move(reply.stream)](std::size_t, httplib::DataSink& sink) {
        bool open = true;
        stream([&](std::string_view bytes) {
          return open = open && sink.write(bytes.data(), bytes.size());
        });
        if (open) {
          sink.done();
        }
        return open;
      });
}

std::string plain_reply(const HttpReply& reply, std::string_view reason) {
  return format(
      "HTTP/1.1 {} {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n"
      "Retry-After: 1\r\nConnection: close\r\n\r\n{}",
      reply.status, reason, reply.body.size(), reply.body);
}

// A thread for each connection, made when one comes and none is idle.
class ConnectionThreads final : public httplib::TaskQueue {
 public:
  explicit ConnectionThreads(std::size_t most) : most_(most) {}

  void enqueue(std::function<void()> serve) override {
    {
      const std::lock_guard lock(mutex_);
      if (idle_ > jobs_.size() || threads_.size() < most_) {
        jobs_.push_back(std::move(serve));
        if (idle_ < jobs_.size()) {
          threads_.emplace_back([this] { work(); });
        }
        ready_.notify_one();
        return;
      }
    }
    no_thread_left = true;  // answered on the accepting thread
    serve();
    no_thread_left = false;
  }

  void shutdown() override {
    {
      const std::lock_guard lock(mutex_);
      ended_ = true;
      ready_.notify_all();
    }
    for (std::thread& thread : threads_) {
      thread.join();
    }
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
  std::list<std::function<void()>> jobs_;
  std::vector<std::thread> threads_;
  std::size_t idle_ = 0;
  bool ended_ = false;
};

}  // namespace

class HttpServer::Wire final : public httplib::Server {
 public:
  Wire(Service& service, HttpServerOptions options)
      : service_(service), options_(std::move(options)) {
    new_task_queue = [this] { return new ConnectionThreads(options_.connections); };  // it deletes
    set_payload_max_length(service_.options().limits.body_bytes);
    set_keep_alive_max_count(1'000'000);  // only announced: Connection keeps the time
    set_keep_alive_timeout(service_.options().limits.idle_ms / 1000);
    set_socket_options([](socket_t socket) {
      const int on = 1;  // not REUSEPORT as by default: a second server must see the port taken
      ::setsockopt(socket, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    });
    set_pre_routing_handler([this](const httplib::Request& from, httplib::Response& response) {
      auto refusal = service_.check_head(to_request(from));
      if (!refusal) {
        return HandlerResponse::Unhandled;
      }
      if (refusal->status >= 400) {
        current_connection->refused = true;
        response.set_header("Connection", "close");
      }
      send(std::move(*refusal), response);
      return HandlerResponse::Handled;
    });
    const auto handler = [this](const httplib::Request& from, httplib::Response& response) {
      HttpRequest request = to_request(from);
      request.body = from.body;
      send(service_.handle(request), response);
    };
    Get(".*", handler);
    Post(".*", handler);
    set_error_handler([](const httplib::Request&, httplib::Response& response) {
      if (response.body.empty() && response.status >= 400) {  // of cpp-httplib's own finding
        const bool slow = current_connection->slow;
        current_connection->refused = true;
        response.set_header("Connection", "close");
        response.status = slow ? 408 : response.status;
        const std::string message = slow ? "the request's body did not come in time"
                                    : response.status == 413 ? "the body is longer than allowed"
                                                             : "this is no HTTP request";
        response.set_content(ApiError(response.status, message).to_reply().body,
                             "application/json");
      }
    });
  }

  int bind() {
    const int port = options_.port == 0
                         ? bind_to_any_port(options_.host)
                         : (bind_to_port(options_.host, options_.port) ? options_.port : -1);
    if (port < 0) {
      throw FileError(
          format("{}:{}: cannot listen there; another program has the port, or the "
                 "address is not this machine's. Choose another with --port",
                 options_.host, options_.port));
    }
    ::listen(svr_sock_, 512);  // cpp-httplib's own backlog is 5
    return port;
  }

  void end() {
    stopping_ = true;
    service_.close();
    if (is_running()) {
      stop();
    }
  }

  void serve(int socket) {
    Connection connection(socket, service_.options().limits, stopping_);
    if (no_thread_left) {
      const std::string reply =
          plain_reply(ApiError(503, "too many connections").to_reply(), "Service Unavailable");
      connection.write(reply.data(), reply.size());
      return;
    }
    current_connection = &connection;
    serve_requests(connection);
    current_connection = nullptr;
    connection.finish();
  }

 private:
  bool process_and_close_socket(socket_t socket) override {
    serve(socket);
    return true;
  }

  void serve_requests(Connection& connection) {
    for (;;) {
      const Connection::Head head = connection.wait_for_head();
      if (head == Connection::Head::kTooLong || head == Connection::Head::kSlow) {
        const bool slow = head == Connection::Head::kSlow;
        const std::string reply = plain_reply(
            ApiError(slow ? 408 : 431, slow ? "the request's head did not come in time"
                                            : "the request's head is longer than allowed")
                .to_reply(),
            slow ? "Request Timeout" : "Request Header Fields Too Large");
        connection.write(reply.data(), reply.size());
      }
      bool closed = false;
      if (head != Connection::Head::kWhole ||
          !process_request(connection, stopping_, closed, nullptr) || closed ||
          connection.refused) {
        return;
      }
    }
  }

  Service& service_;
  HttpServerOptions options_;
  std::atomic<bool> stopping_ = false;
};

HttpServer::HttpServer(Service& service, HttpServerOptions options)
    : wire_(std::make_unique<Wire>(service, std::move(options))) {}
HttpServer::~HttpServer() = default;

int HttpServer::bind() { return wire_->bind(); }
void HttpServer::run() { wire_->listen_after_bind(); }
void HttpServer::stop() { wire_->end(); }
void HttpServer::serve(int socket) { wire_->serve(socket); }

}  // namespace needle
