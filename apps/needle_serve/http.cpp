#include <atomic>
#include <csignal>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <utility>

#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/runtime/aligned_buffer.h"
#include "needle/server/endpoint_rows.h"
#include "needle/server/http_server.h"
#include "needle/server/playground.h"

#include "apps/needle_serve/commands.h"

namespace needle {
namespace {

struct ServeCommand {
  ModelOptions models;
  ToolOptions tools;
  HttpServerOptions http;
  ServiceOptions service;
  std::string workspace;
  std::string endpoint_ca;
  bool insecure = false;
};

// SIGINT and SIGTERM end the server once its requests are answered, the second one at once. The
// thread that waits for them ends with the server.
class StopOnSignal {
 public:
  explicit StopOnSignal(HttpServer& server)
      : waiter_([this, &server] {
          int signal = 0;
          ::sigwait(&signals_, &signal);
          server.stop();
          ::sigwait(&signals_, &signal);
          if (!ended_) {
            ::_exit(130);  // whoever asks twice does not want to wait
          }
        }) {}
  ~StopOnSignal() {
    ended_ = true;
    for (int i = 0; i < 2; ++i) {  // if the server ended otherwise, it still waits for the first
      ::pthread_kill(waiter_.native_handle(), i == 0 ? SIGTERM : SIGINT);
    }
    waiter_.join();
  }
  // Before any thread is started: they inherit it.
  static void block() {
    const sigset_t signals = both();
    ::pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  }

 private:
  static sigset_t both() {
    sigset_t signals;
    ::sigemptyset(&signals);
    ::sigaddset(&signals, SIGINT);
    ::sigaddset(&signals, SIGTERM);
    return signals;
  }
  const sigset_t signals_ = both();
  std::atomic<bool> ended_ = false;
  std::thread waiter_;  // the last: it uses the others
};

void check_exposure(const ServeCommand& options) {
  if (!is_loopback_name(options.http.host) && options.service.access.api_key.empty() &&
      !options.insecure) {
    throw ConfigError(
        format("--host {}: others can reach this address. Give a key in the "
               "environment variable NEEDLE_API_KEY, or say --insecure",
               options.http.host));
  }
}

// NEEDLE_HOME; "" where neither it nor HOME is set.
std::filesystem::path cache_folder() {
  try {
    return needle_home();
  } catch (const ConfigError&) {
    return {};
  }
}

// Nothing where there is no folder for it to keep things in.
std::unique_ptr<Playground> make_playground(const ServeCommand& options) {
  const std::filesystem::path cache = cache_folder();
  if (cache.empty() && options.workspace.empty()) {
    return nullptr;
  }
  if (!options.endpoint_ca.empty()) {
    check_ca_file(options.endpoint_ca);
  }
  const std::filesystem::path released = cache / "released" / "needle.pkl";
  return std::make_unique<Playground>(PlaygroundOptions{
      .folder = options.workspace.empty() ? cache / "playground"
                                          : std::filesystem::absolute(options.workspace),
      .released = std::filesystem::exists(released) ? released : std::filesystem::path(),
      .train_program = find_program("needle-train"),
      .export_program = find_program("needle-export"),
      .endpoint_ca = options.endpoint_ca,
      .limits = options.service.limits,
      .uploads = {}});
}

// A request's memory serves the next one: freed pages stay, and threads share heaps, one for each
// request that runs at once. As many heaps as connections would be cold and mapped anew each time:
// 1.84 instead of 1.77 ms of CPU a request (the tests' small model, 32 clients, 3000 requests).
void keep_memory([[maybe_unused]] std::size_t running) {
  runtime::keep_buffers();
#ifdef __GLIBC__
  ::mallopt(M_ARENA_MAX, static_cast<int>(running));
  ::mallopt(M_TRIM_THRESHOLD, 64 << 20);
  ::mallopt(M_MMAP_THRESHOLD, 4 << 20);
#endif
}

void serve(ServeCommand options) {
  check_exposure(options);
  keep_memory(options.service.running);
  StopOnSignal::block();
  const auto playground = make_playground(options);
  options.service.extension = playground.get();
  ModelStore models =
      options.models.open(playground ? playground->models_folder() : std::filesystem::path());
  const auto imported = options.tools.import();
  options.service.shelf = &imported->shelf;
  Service service(models, options.service);
  HttpServer server(service, options.http);
  const int port = server.bind();
  std::cerr << format("needle-serve: {}\n", greeting(models));
  if (!imported->shelf.empty()) {
    std::cerr << format("tools: {} of {} MCP server(s), for requests that name none\n",
                        imported->shelf.tools().items().size(), imported->servers.size());
  }
  std::cerr << format("ready: http://{}:{}/ (API under /v1; Ctrl-C ends)\n", options.http.host,
                      port);
  {
    const StopOnSignal stop(server);
    server.run();
  }
  std::cerr << "stopped: every request was answered\n";
}

void add_access_options(CLI::App& app, ServeCommand& options) {
  AccessOptions& access = options.service.access;
  app.add_option("--workspace", options.workspace,
                 "Folder where the page keeps uploaded models, rows and finetunings; default: "
                 "playground in NEEDLE_HOME (~/.cache/needle)");
  app.add_option("--endpoint-ca", options.endpoint_ca,
                 "Certificates (PEM) that may sign for an https endpoint which the page asks for "
                 "rows, instead of those that this machine trusts")
      ->type_name("FILE");
  app.add_option("--host", options.http.host, "Address to listen on")->capture_default_str();
  app.add_option("--port", options.http.port, "Port; 0: any free one")
      ->check(CLI::Range(0, 65535))
      ->capture_default_str();
  app.add_option("--api-key", access.api_key,
                 "Key that clients must send; better given in the environment")
      ->envname("NEEDLE_API_KEY");
  app.add_flag("--insecure", options.insecure, "Listen beyond this machine without a key");
  app.add_option("--allow-host", access.allowed_hosts,
                 "Name under which clients may ask for this server besides localhost; *: any");
  app.add_option("--cors-origin", access.cors_origins,
                 "Origin whose pages may use this server: https://app.example; *: any");
}

void add_limit_options(CLI::App& app, ServiceOptions& service) {
  ServerLimits& limits = service.limits;
  app.add_option("--workers", service.running,
                 "Requests answered at once, a thread each; default: one per core and one more")
      ->check(CLI::Range(1, 1024));
  app.add_option("--queue", service.waiting, "Requests that wait; beyond that 429")
      ->capture_default_str();
  app.add_flag("--log-requests", service.log_requests,
               "A line on standard error for each request: route, status, time, X-Request-Id; no "
               "text of it");
  app.add_option("--deadline-ms", limits.deadline_ms,
                 "Longest time of a request, its wait included (504)")
      ->check(CLI::Range(1, 3'600'000))
      ->capture_default_str();
  app.add_option("--slow-client-ms", limits.slow_client_ms,
                 "Longest time a client may take to send a head, and again a body (408)")
      ->check(CLI::Range(1, 3'600'000))
      ->capture_default_str();
  app.add_option("--max-body-bytes", limits.body_bytes, "Longest body of a request (413)")
      ->capture_default_str();
}

}  // namespace

void add_http_server(CLI::App& app) {
  const auto options = std::make_shared<ServeCommand>();
  // One more than cores: a core is not idle while the system moves a thread to it.
  options->service.running = std::max(1U, std::thread::hardware_concurrency()) + 1;
  options->models.add_to(app);
  options->tools.add_to(app);
  add_access_options(app, *options);
  add_limit_options(app, options->service);
  app.footer(
      "The page and the API on http://127.0.0.1:7860, with the best model at hand:\n"
      "  needle-serve\n"
      "With a model of your choice:\n"
      "  needle-serve --model model.needle\n"
      "Any client of the OpenAI API: base URL http://127.0.0.1:7860/v1\n"
      "Exit codes: 0 stopped by SIGINT or SIGTERM, 130 by a second one while requests ran, 1\n"
      "failed, 2 wrong usage.");
  app.callback([&app, options] {
    if (app.get_subcommands().empty()) {
      serve(*options);
    }
  });
}

}  // namespace needle
