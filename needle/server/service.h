// The routes of the server: requests in, replies out, without sockets.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "needle/server/access.h"
#include "needle/server/admission.h"
#include "needle/server/http.h"
#include "needle/server/limits.h"
#include "needle/server/metrics.h"
#include "needle/server/model_store.h"
#include "needle/server/route_extension.h"
#include "needle/server/tool_reader.h"
#include "needle/server/tool_shelf.h"

namespace needle {

struct ServiceOptions {
  AccessOptions access;
  ServerLimits limits;
  std::size_t running = 1;              // requests that models work on at once
  std::size_t waiting = 64;             // more wait for their turn; beyond that 429
  bool log_requests = false;            // a line each: no text of a request, nor of a reply
  const ToolShelf* shelf = nullptr;     // not owned: tools for requests that name none; may be null
  RouteExtension* extension = nullptr;  // not owned, outlives the service; may be absent
};

// Thread-safe. Keeps a reference to `models`, which must outlive it.
class Service {
 public:
  Service(ModelStore& models, ServiceOptions options);

  // The reply to whatever can be refused before the body is read: access, path, method, content
  // type, announced length. Like every reply of handle() it has an X-Request-Id.
  std::optional<HttpReply> check_head(const HttpRequest& request) const;
  // Never throws: every failure is a reply in OpenAI's shape. Call it after check_head.
  HttpReply handle(const HttpRequest& request);

  // Every route that this service answers, the extension's too.
  std::vector<RouteName> routes() const;

  void close() { admission_.close(); }  // those who wait are turned away with 503
  const ServiceOptions& options() const { return options_; }

 private:
  struct Completion;  // one chat request on its way
  struct Route;
  static const std::array<Route, 11> kRoutes;
  static const Route* find_route(std::string_view path);

  bool is_extension(const HttpRequest& request) const;
  std::optional<HttpReply> refusal_of_head(const HttpRequest& request) const;
  std::string request_id(const HttpRequest& request) const;
  std::string logged_name(const HttpRequest& request) const;
  void log_reply(std::string_view name, int status, double seconds, std::string_view id) const;
  void check_body_head(const HttpRequest& request) const;  // throws ApiError
  HttpReply dispatch(const HttpRequest& request);
  HttpReply chat(const HttpRequest& request);
  HttpReply embeddings(const HttpRequest& request);
  HttpReply rank(const HttpRequest& request);
  HttpReply models(const HttpRequest& request);
  HttpReply model(const HttpRequest& request);
  HttpReply tools(const HttpRequest& request);
  HttpReply health(const HttpRequest& request);
  HttpReply metrics(const HttpRequest& request);
  HttpReply openapi(const HttpRequest& request);
  HttpReply page(const HttpRequest& request);

  // Waits for its turn. Throws ApiError 429 with Retry-After, 503, 504, or 499 for a client that
  // went away.
  Admission::Ticket enter(const HttpRequest& request, Admission::Clock::time_point deadline);
  // The same, then does `work`, which may run on another thread while this one waits.
  void run_in_turn(const HttpRequest& request, Admission::Clock::time_point deadline,
                   const std::function<void()>& work);
  void check_admitted(Admission::Outcome outcome);

  ModelStore& models_;
  ServiceOptions options_;
  Admission admission_;
  ToolReader tool_reader_;
  Metrics metrics_;
  mutable std::atomic<std::uint64_t> requests_ = 0;
  std::string run_id_;  // differs between runs, so that ids do
};

}  // namespace needle
