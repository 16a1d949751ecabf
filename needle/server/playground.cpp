#include "needle/server/playground.h"

#include <algorithm>
#include <array>
#include <utility>

#include "needle/core/error.h"
#include "needle/runtime/loaded_model.h"
#include "needle/server/access.h"
#include "needle/server/api_error.h"
#include "needle/server/body.h"
#include "needle/server/job_rows.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kPrefix = "/playground/";
constexpr std::size_t kPieceBytes = 512 << 10;
constexpr std::int64_t kRowsShown = 25;

HttpReply json_reply(const Json& json) {
  HttpReply reply{.body = json.dump(-1, ' ', false, Json::error_handler_t::replace)};
  reply.headers["Cache-Control"] = "no-store";
  return reply;
}

std::vector<std::string> segments(std::string_view path) {
  std::vector<std::string> parts;
  while (!path.empty()) {
    const std::size_t end = std::min(path.find('/', 1), path.size());
    parts.emplace_back(path.substr(1, end - 1));
    path.remove_prefix(end);
  }
  return parts;
}

std::string required_string(const JsonValue& body, std::string_view key) {
  auto value = read_string(body, key);
  if (!value || value->empty()) {
    throw bad_request(std::string(key), "missing; expected a text");
  }
  return std::move(*value);
}

std::int64_t whole_number(std::string_view text, std::string_view what) {
  std::int64_t value = 0;
  for (const char c : text) {
    if (c < '0' || c > '9' || value > std::int64_t{1} << 40) {
      value = -1;
      break;
    }
    value = 10 * value + (c - '0');
  }
  if (text.empty() || value < 0) {
    throw ApiError(400, format("{}: expected a whole number, got {}", what, text.substr(0, 40)));
  }
  return value;
}

}  // namespace

struct Playground::Route {
  std::string_view path;  // "{name}": any one part
  std::string_view method;
  HttpReply (Playground::*handler)(const HttpRequest&, const Parts&);
  bool binary = false;  // the body is a piece of a file
};

constexpr std::array<Playground::Route, 15> Playground::kRoutes = {{
    {"/playground/status", "GET", &Playground::status},
    {"/playground/uploads", "POST", &Playground::begin_upload},
    {"/playground/uploads/{upload}", "POST", &Playground::add_to_upload, true},
    {"/playground/models", "POST", &Playground::add_model},
    {"/playground/jobs", "GET", &Playground::list_jobs},
    {"/playground/jobs", "POST", &Playground::add_job},
    {"/playground/jobs/{job}", "GET", &Playground::show_job},
    {"/playground/jobs/{job}/tools", "GET", &Playground::show_tools},
    {"/playground/jobs/{job}/rows/{first}", "GET", &Playground::show_rows},
    {"/playground/jobs/{job}/rows", "POST", &Playground::add_rows},
    {"/playground/jobs/{job}/start", "POST", &Playground::start_job},
    {"/playground/jobs/{job}/cancel", "POST", &Playground::act_on_job},
    {"/playground/jobs/{job}/resume", "POST", &Playground::act_on_job},
    {"/playground/jobs/{job}/remove", "POST", &Playground::act_on_job},
    {"/playground/jobs/{job}/bundle", "GET", &Playground::bundle},
}};

const Playground::Route* Playground::find_route(const HttpRequest& request, Parts& parts,
                                                bool any_method) const {
  const std::vector<std::string> asked = segments(request.path);
  for (const Route& route : kRoutes) {
    const std::vector<std::string> pattern = segments(route.path);
    parts.clear();
    bool fits = pattern.size() == asked.size() && (any_method || route.method == request.method);
    for (std::size_t i = 0; fits && i < pattern.size(); ++i) {
      const bool any = pattern[i].starts_with('{');
      fits = any || pattern[i] == asked[i];
      if (any) {
        parts.push_back(asked[i]);
      }
    }
    if (fits) {
      return &route;
    }
  }
  return nullptr;
}

Playground::Playground(PlaygroundOptions options)
    : options_(std::move(options)),
      jobs_({.folder = options_.folder / "jobs",
             .models = models_folder(),
             .train_program = options_.train_program,
             .export_program = options_.export_program,
             .min_free_bytes = options_.min_free_bytes}),
      uploads_(options_.folder / "uploads", options_.uploads) {}

bool Playground::owns(std::string_view path) const { return path.starts_with(kPrefix); }

std::vector<RouteName> Playground::routes() const {
  std::vector<RouteName> names;
  for (const Route& route : kRoutes) {
    names.push_back({.method = route.method, .path = route.path});
  }
  return names;
}

void check_local(const HttpRequest& request) {
  const auto refuse = [](std::string_view why) {
    throw ApiError(403,
                   format("only a page on the machine that runs this server may do that: {}", why),
                   {.code = "not_local"});
  };
  if (!request.from_this_machine) {
    refuse("the request comes from another one");
  }
  if (!is_loopback_name(host_name(request.header("Host")))) {
    refuse("ask for it as localhost");
  }
  for (const std::string_view name : {"Forwarded", "X-Forwarded-For", "X-Real-IP", "Via"}) {
    if (!request.header(name).empty()) {
      refuse(format("the header {} tells of a proxy", name));
    }
  }
  const std::string_view origin = request.header("Origin");
  if (!origin.empty() && origin != "http://" + std::string(request.header("Host"))) {
    refuse("the page's origin is another");
  }
  const std::string_view site = request.header("Sec-Fetch-Site");
  if (!site.empty() && site != "same-origin" && site != "none") {
    refuse("another site's page asks");
  }
}

void Playground::check_head(const HttpRequest& request) const {
  check_local(request);
  Parts parts;
  const Route* route = find_route(request, parts, /*any_method=*/false);
  if (route == nullptr) {
    const Route* other = find_route(request, parts, /*any_method=*/true);
    throw other == nullptr
        ? ApiError(404, "no such route")
        : ApiError(405, format("expected {}, got {}", other->method, request.method.substr(0, 20)));
  }
  const std::string_view expected = route->binary ? "application/octet-stream" : "application/json";
  if (route->method == "POST" && !request.header("Content-Type").starts_with(expected)) {
    throw ApiError(415, format("Content-Type: expected {}", expected));
  }
}

HttpReply Playground::handle(const HttpRequest& request) {
  Parts parts;
  const Route* route = find_route(request, parts, /*any_method=*/false);
  if (route == nullptr) {
    throw ApiError(404, "no such route");
  }
  try {
    return (this->*route->handler)(request, parts);
  } catch (const fs::filesystem_error& error) {
    const bool full = error.code() == std::errc::no_space_on_device;
    throw ApiError(full ? 507 : 500, error.what(), {.code = full ? "disk_full" : ""});
  }
}

HttpReply Playground::status(const HttpRequest&, const Parts&) {
  return json_reply(
      {{"folder", options_.folder.string()},
       {"can_train", !options_.train_program.empty() && !options_.export_program.empty()},
       {"released_weights", !options_.released.empty()},
       {"piece_bytes", std::min(kPieceBytes, options_.limits.body_bytes)},
       {"model_bytes", options_.uploads.model_bytes},
       {"rows_bytes", options_.uploads.rows_bytes},
       {"max_rows", kMaxMadeRows}});
}

HttpReply Playground::begin_upload(const HttpRequest& request, const Parts&) {
  const JsonValue body = parse_body(request.body);
  const std::string kind = required_string(body, "kind");
  if (kind != "model" && kind != "rows") {
    throw bad_request("kind", "expected model or rows");
  }
  const auto bytes = read_integer(body, "bytes", 0, std::int64_t{1} << 50);
  if (!bytes) {
    throw bad_request("bytes", "missing; expected the file's size");
  }
  uploads_.check_size(kind, static_cast<std::uint64_t>(*bytes));  // before the disk's room
  jobs_.prepare(static_cast<std::uint64_t>(*bytes));
  const std::string id = uploads_.begin(kind, static_cast<std::uint64_t>(*bytes));
  return json_reply({{"id", id}});
}

HttpReply Playground::add_to_upload(const HttpRequest& request, const Parts& parts) {
  const auto offset = whole_number(request.header("Upload-Offset"), "the header Upload-Offset");
  return json_reply(
      {{"received", uploads_.add(parts.at(0), static_cast<std::uint64_t>(offset), request.body)}});
}

// Opened before it gets its name: what cannot be served is refused here.
HttpReply Playground::add_model(const HttpRequest& request, const Parts&) {
  const JsonValue body = parse_body(request.body);
  std::string name = required_string(body, "name");
  if (name.ends_with(".needle")) {
    name.resize(name.size() - std::string_view(".needle").size());
  }
  if (!is_file_name(name)) {
    throw bad_request("name", "expected letters, digits, '.', '_' and '-', at most 64");
  }
  const fs::path target = models_folder() / (name + ".needle");
  if (fs::exists(target) && !read_bool(body, "replace").value_or(false)) {
    throw ApiError(409, format("a model called {} is there already", name),
                   {.code = "model_exists", .param = "name"});
  }
  const fs::path file = uploads_.take(required_string(body, "upload"), "model");
  try {
    runtime::LoadedModel::load(file);
  } catch (const Error& error) {
    std::error_code ignored;
    fs::remove(file, ignored);
    std::string message = error.what();
    if (const std::size_t at = message.find(file.string()); at != std::string::npos) {
      message.replace(at, file.string().size(), name + ".needle");
    }
    throw ApiError(400, message, {.code = "not_a_model"});
  }
  fs::rename(file, target);
  return json_reply({{"id", name}});
}

HttpReply Playground::list_jobs(const HttpRequest&, const Parts&) {
  return json_reply(jobs_.list());
}

HttpReply Playground::show_job(const HttpRequest&, const Parts& parts) {
  return json_reply(jobs_.show(parts.at(0)));
}

HttpReply Playground::show_tools(const HttpRequest&, const Parts& parts) {
  return {.body = read_file(jobs_.files(parts.at(0)).tools())};
}

HttpReply Playground::show_rows(const HttpRequest&, const Parts& parts) {
  const auto first = whole_number(parts.at(1), "the first row");
  return json_reply(rows_page(jobs_.files(parts.at(0)).rows(), first, kRowsShown));
}

HttpReply Playground::act_on_job(const HttpRequest& request, const Parts& parts) {
  const std::string& id = parts.at(0);
  if (request.path.ends_with("/cancel")) {
    jobs_.cancel(id);
  } else if (request.path.ends_with("/resume")) {
    jobs_.resume(id);
  } else {
    jobs_.remove(id);
    return json_reply(jobs_.list());
  }
  return json_reply(jobs_.show(id));
}

}  // namespace needle
