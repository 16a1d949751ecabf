#include "needle/server/service.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <exception>
#include <iterator>
#include <random>
#include <utility>

#include "needle/core/json.h"
#include "needle/core/log.h"
#include "needle/server/api_error.h"
#include "needle/server/embedded_files.h"

namespace needle {
namespace {

JsonValue model_json(const ModelStore::Entry& entry) {
  JsonValue item = JsonValue::object();
  item.set("id", JsonValue::string(entry.name));
  item.set("object", JsonValue::string("model"));
  item.set("created", JsonValue::integer(entry.created));
  item.set("owned_by", JsonValue::string("needle"));
  item.set("bytes", JsonValue::integer(static_cast<std::int64_t>(entry.bytes)));
  return item;
}

// "application/json", whatever its letters' case and its parameters.
bool is_json(std::string_view content_type) {
  const std::string_view media = content_type.substr(0, content_type.find(';'));
  const std::string_view trimmed = media.substr(0, media.find_last_not_of(" \t") + 1);
  return !HeaderLess()(trimmed, "application/json") && !HeaderLess()("application/json", trimmed);
}

// One way of telling the body's length, and a length that is allowed: where a proxy could
// understand another one, its next request would be taken for a part of this one.
void check_length(const HttpRequest& request, std::size_t most) {
  const std::string_view length = request.header("Content-Length");
  const std::string_view coding = request.header("Transfer-Encoding");
  if (length.find_first_not_of("0123456789") != std::string_view::npos) {
    throw ApiError(400, "Content-Length: expected one number");
  }
  if (!coding.empty() && (coding != "chunked" || !length.empty())) {
    throw ApiError(400, "expected either Content-Length or Transfer-Encoding: chunked");
  }
  if (length.size() > 12 || (!length.empty() && std::stoull(std::string(length)) > most)) {
    throw ApiError(
        413, format("the body: {} bytes, at most {} are allowed", length.substr(0, 20), most));
  }
}

}  // namespace

struct Service::Route {
  std::string_view path;
  std::string_view method;
  HttpReply (Service::*handler)(const HttpRequest&);
  bool open = false;  // without a key
};

// A {name} comes last and stands for the rest of the path.
constexpr std::array<Service::Route, 11> Service::kRoutes = {{
    {"/v1/chat/completions", "POST", &Service::chat},
    {"/v1/embeddings", "POST", &Service::embeddings},
    {"/v1/rank", "POST", &Service::rank},
    {"/v1/models", "GET", &Service::models},
    {"/v1/models/{model}", "GET", &Service::model},
    {"/v1/tools", "GET", &Service::tools},
    {"/health", "GET", &Service::health, true},
    {"/metrics", "GET", &Service::metrics},
    {"/openapi.json", "GET", &Service::openapi, true},
    {"/", "GET", &Service::page, true},
    {"/{file}", "GET", &Service::page, true},
}};

const Service::Route* Service::find_route(std::string_view path) {
  const auto found = std::ranges::find_if(kRoutes, [&](const Route& route) {
    const std::size_t name = route.path.find('{');
    return name == std::string_view::npos ? path == route.path
                                          : path.starts_with(route.path.substr(0, name));
  });
  if (found == kRoutes.end()) {
    return nullptr;
  }
  const bool of_page = path.ends_with(".js") || path.ends_with(".css");
  const bool there =
      found->path != "/{file}" || (of_page && !embedded_file(path.substr(1)).empty());
  return there ? &*found : nullptr;
}

std::vector<RouteName> Service::routes() const {
  std::vector<RouteName> names;
  for (const Route& route : kRoutes) {
    names.push_back({.method = route.method, .path = route.path, .open = route.open});
  }
  if (options_.extension != nullptr) {
    std::ranges::copy(options_.extension->routes(), std::back_inserter(names));
  }
  return names;
}

Service::Service(ModelStore& models, ServiceOptions options)
    : models_(models),
      options_(std::move(options)),
      admission_(options_.running, options_.waiting),
      tool_reader_(options_.limits),
      run_id_(format("{}", std::random_device()())) {}

bool Service::is_extension(const HttpRequest& request) const {
  return options_.extension != nullptr && options_.extension->owns(request.path);
}

// The client's own where it can stand in a header and a log line, as proxies and tracers send it.
std::string Service::request_id(const HttpRequest& request) const {
  constexpr std::size_t kLongest = 128;
  const std::string_view given = request.header("X-Request-Id");
  const bool fit = !given.empty() && given.size() <= kLongest &&
                   std::ranges::all_of(given, [](char c) { return c > ' ' && c < '\x7f'; });
  return fit ? std::string(given) : format("req_{}x{}", run_id_, ++requests_);
}

// "" where nothing is logged.
std::string Service::logged_name(const HttpRequest& request) const {
  return options_.log_requests
             ? format("{} {}", request.method, excerpt(JsonValue::string(request.path), 100))
             : "";
}

void Service::log_reply(std::string_view name, int status, double seconds,
                        std::string_view id) const {
  if (options_.log_requests) {
    log_info("{} {} {:.1f} ms req={}", name, status, 1e3 * seconds, id);
  }
}

std::optional<HttpReply> Service::check_head(const HttpRequest& request) const {
  std::optional<HttpReply> refusal = refusal_of_head(request);
  if (refusal) {
    const std::string id = request_id(request);
    log_reply(logged_name(request), refusal->status, 0, id);
    refusal->headers["X-Request-Id"] = id;
  }
  return refusal;
}

std::optional<HttpReply> Service::refusal_of_head(const HttpRequest& request) const {
  const Route* route = find_route(request.path);
  try {
    if (is_extension(request)) {
      check_access(request, options_.access, /*open=*/false);
      options_.extension->check_head(request);
      check_body_head(request);
      return {};
    }
    // A preflight carries no key.
    check_access(request, options_.access,
                 route == nullptr || route->open || request.method == "OPTIONS");
    if (request.method == "OPTIONS") {
      return HttpReply{.status = 204, .headers = cors_headers(request, options_.access)};
    }
    if (route == nullptr) {
      throw ApiError(404, format("{} {}: no such route; GET /openapi.json lists them",
                                 request.method, request.path.substr(0, 100)));
    }
    if (request.method != route->method && !(request.method == "HEAD" && route->method == "GET")) {
      HttpReply reply = ApiError(405, format("{}: expected {}, got {}", route->path, route->method,
                                             request.method))
                            .to_reply();
      reply.headers["Allow"] = std::string(route->method);
      return reply;
    }
    if (route->method == "POST") {
      // Also keeps pages of other origins from sending what needs no preflight.
      if (!is_json(request.header("Content-Type"))) {
        throw ApiError(
            415, format("Content-Type: expected application/json, got {}",
                        excerpt(JsonValue::string(std::string(request.header("Content-Type"))))));
      }
      check_body_head(request);
    }
  } catch (const ApiError& error) {
    return error.to_reply();
  }
  return {};
}

void Service::check_body_head(const HttpRequest& request) const {
  if (!request.header("Content-Encoding").empty()) {
    throw ApiError(415, "Content-Encoding: expected a body that is not compressed");
  }
  check_length(request, options_.limits.body_bytes);
}

HttpReply Service::handle(const HttpRequest& request) {
  const auto start = std::chrono::steady_clock::now();
  HttpReply reply = dispatch(request);
  for (const auto& [name, value] : cors_headers(request, options_.access)) {
    reply.headers[name] = value;
  }
  const std::string id = request_id(request);
  reply.headers["X-Request-Id"] = id;
  const Route* route = find_route(request.path);
  const std::string_view name = is_extension(request) ? "/playground"
                                : route == nullptr    ? "other"
                                                      : route->path;
  const auto count = [this, name, start, id, logged = logged_name(request), status = reply.status] {
    const double seconds =
        std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    metrics_.count_reply(name, status, seconds);
    log_reply(logged, status, seconds, id);
  };
  if (!reply.stream) {
    count();
    return reply;
  }
  reply.stream = [stream = std::move(reply.stream), count](const HttpReply::Write& write) {
    stream(write);
    count();
  };
  return reply;
}

HttpReply Service::dispatch(const HttpRequest& request) {
  const Route* route = find_route(request.path);
  try {
    if (is_extension(request)) {
      return options_.extension->handle(request);
    }
    if (route == nullptr) {
      throw ApiError(404, "no such route");
    }
    return (this->*route->handler)(request);
  } catch (const ApiError& error) {
    return error.to_reply();
  } catch (const DataError& error) {
    return ApiError(400, error.what()).to_reply();
  } catch (const std::exception& error) {
    log_error("{} {}: {}", request.method, request.path, error.what());
    return ApiError(500, error.what()).to_reply();
  }
}

Admission::Ticket Service::enter(const HttpRequest& request,
                                 Admission::Clock::time_point deadline) {
  Admission::Ticket ticket = admission_.enter(deadline, request.client_gone);
  check_admitted(ticket.outcome());
  return ticket;
}

void Service::run_in_turn(const HttpRequest& request, Admission::Clock::time_point deadline,
                          const std::function<void()>& work) {
  check_admitted(admission_.run(deadline, request.client_gone, work));
}

void Service::check_admitted(Admission::Outcome outcome) {
  switch (outcome) {
    case Admission::Outcome::kAdmitted:
      return;
    case Admission::Outcome::kFull: {
      ApiError error(429,
                     format("{} requests are waiting already; try again later", options_.waiting),
                     {.code = "queue_full"});
      error.retry_after_seconds = 1;
      throw error;
    }
    case Admission::Outcome::kLate:
      throw ApiError(504, format("no turn within {} ms", options_.limits.deadline_ms),
                     {.code = "timeout"});
    case Admission::Outcome::kGone:
      metrics_.count_cancelled();
      throw ApiError(499, "the client went away");
    case Admission::Outcome::kClosed:
      break;
  }
  throw ApiError(503, "the server is shutting down");
}

HttpReply Service::models(const HttpRequest&) {
  JsonValue data = JsonValue::array();
  for (const ModelStore::Entry& entry : models_.list()) {
    data.items().push_back(model_json(entry));
  }
  JsonValue list = JsonValue::object({{"object", JsonValue::string("list")}});
  if (data.items().empty()) {
    list.set("needle", JsonValue::object({{"hint", JsonValue::string(no_model_hint())}}));
  }
  list.set("data", std::move(data));
  return {.body = write_compact(list, JsonEscapes::kUtf8)};
}

HttpReply Service::model(const HttpRequest& request) {
  const std::string_view name =
      std::string_view(request.path).substr(std::string_view("/v1/models/").size());
  for (const ModelStore::Entry& entry : models_.list()) {
    if (entry.name == name) {
      return {.body = write_compact(model_json(entry), JsonEscapes::kUtf8)};
    }
  }
  throw ApiError(404, "the model does not exist; GET /v1/models lists those that do",
                 {.code = "model_not_found", .param = "model"});
}

HttpReply Service::tools(const HttpRequest&) {
  JsonValue data = JsonValue::array();
  if (options_.shelf != nullptr) {
    for (const JsonValue& tool : options_.shelf->tools().items()) {
      data.items().push_back(
          JsonValue::object({{"type", JsonValue::string("function")}, {"function", tool}}));
    }
  }
  return {.body = write_compact(
              JsonValue::object({{"object", JsonValue::string("list")}, {"data", std::move(data)}}),
              JsonEscapes::kUtf8)};
}

HttpReply Service::health(const HttpRequest&) { return {.body = "{\"status\":\"ok\"}"}; }

HttpReply Service::metrics(const HttpRequest&) {
  return {.content_type = "text/plain; version=0.0.4",
          .body = metrics_.text({.running = admission_.running(),
                                 .waiting = admission_.waiting(),
                                 .models = models_.list().size()})};
}

HttpReply Service::openapi(const HttpRequest&) {
  const std::string_view text = embedded_file("openapi.json");
  if (options_.extension != nullptr) {
    return {.body = std::string(text)};
  }
  Json document = Json::parse(text);
  Json& paths = document["paths"];
  for (auto path = paths.begin(); path != paths.end();) {
    path = path.key().starts_with("/playground/") ? paths.erase(path) : std::next(path);
  }
  return {.body = document.dump()};
}

HttpReply Service::page(const HttpRequest& request) {
  const std::string name = request.path == "/" ? "index.html" : request.path.substr(1);
  const std::string type = name.ends_with(".css")  ? "text/css"
                           : name.ends_with(".js") ? "text/javascript"
                                                   : "text/html";
  HttpReply reply{.content_type = type + "; charset=utf-8",
                  .body = std::string(embedded_file(name))};
  reply.headers["Content-Security-Policy"] =
      "default-src 'self'; img-src data:; frame-ancestors 'none'; base-uri 'none'; form-action "
      "'none'";
  reply.headers["X-Content-Type-Options"] = "nosniff";
  reply.headers["Cache-Control"] = "no-cache";
  return reply;
}

}  // namespace needle
