// needle-serve: an OpenAI-compatible server and a page to play with. No LibTorch in this program.
#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include <pthread.h>
#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/server/http_server.h"

#include "apps/cli.h"

namespace needle {
namespace {

struct ServeCommand {
  std::vector<std::string> models;
  std::string folder;
  HttpServerOptions http;
  ServiceOptions service;
  std::string numerics = "int8";
  bool insecure = false;
};

// SIGINT and SIGTERM end the server; the thread that waits for them ends with it.
class StopOnSignal {
 public:
  explicit StopOnSignal(HttpServer& server)
      : waiter_([this, &server] {
          int signal = 0;
          ::sigwait(&signals_, &signal);
          server.stop();
        }) {}
  ~StopOnSignal() {
    ::pthread_kill(waiter_.native_handle(), SIGTERM);  // if the server ended otherwise
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
  std::thread waiter_;
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

// The models named, else those of --models, else of the folder that one stands in.
std::vector<std::filesystem::path> model_files(const ServeCommand& options) {
  std::vector<std::filesystem::path> files(options.models.begin(), options.models.end());
  if (files.empty() && options.folder.empty()) {
    for (const auto& item : std::filesystem::directory_iterator(".")) {
      if (item.path().extension() == ".needle") {
        files.push_back(item.path());
      }
    }
    std::ranges::sort(files, std::ranges::greater(),
                      [](const auto& path) { return std::filesystem::last_write_time(path); });
  }
  return files;
}

void serve(ServeCommand options) {
  check_exposure(options);
  StopOnSignal::block();
  ModelStore models(model_files(options), options.folder,
                    {.numerics = *runtime::kNumericsNames.parse(options.numerics)});
  if (models.list().empty()) {
    throw ConfigError(
        "no model: give --model FILE.needle or --models FOLDER, or start it in a folder that has a "
        ".needle file");
  }
  Service service(models, options.service);
  HttpServer server(service, options.http);
  const int port = server.bind();
  std::cerr << format("{} ready: http://{}:{}/ (API under /v1, {} model(s); Ctrl-C ends)\n",
                      models.list().front().name, options.http.host, port, models.list().size());
  {
    const StopOnSignal stop(server);
    server.run();
  }
  std::cerr << "stopped: every request was answered\n";
}

}  // namespace
}  // namespace needle

int main(int argc, char** argv) {
  using needle::ServeCommand;
  ServeCommand options;
  options.service.running = std::max(1U, std::thread::hardware_concurrency());
  auto& access = options.service.access;
  auto& limits = options.service.limits;
  CLI::App app{"Serve .needle files: an OpenAI-compatible API and a page to play with.",
               "needle-serve"};
  app.add_option("-m,--model", options.models,
                 "Weights file (.needle); several may follow, the first is the default. Without it "
                 "and --models: those of this folder, the newest first")
      ->envname("NEEDLE_MODEL");
  app.add_option("--models", options.folder, "Folder whose .needle files are served, too")
      ->check(CLI::ExistingDirectory);
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
  app.add_option("--workers", options.service.running,
                 "Requests answered at once, a thread each; default: one per core")
      ->check(CLI::Range(1, 1024));
  app.add_option("--queue", options.service.waiting, "Requests that wait; beyond that 429")
      ->capture_default_str();
  app.add_option("--deadline-ms", limits.deadline_ms,
                 "Longest time of a request, its wait included")
      ->check(CLI::Range(1, 3'600'000))
      ->capture_default_str();
  app.add_option("--max-body-bytes", limits.body_bytes, "Longest body of a request")
      ->capture_default_str();
  app.add_option("--numerics", options.numerics,
                 "int8: 8-bit activations, fast; float: token for token as LibTorch")
      ->check(CLI::IsMember({"int8", "float"}))
      ->capture_default_str();
  app.footer(
      "The page and the API on http://127.0.0.1:7860:\n"
      "  needle-serve --model model.needle\n"
      "Any client of the OpenAI API: base URL http://127.0.0.1:7860/v1\n"
      "Exit codes: 0 stopped by SIGINT or SIGTERM, 1 failed, 2 wrong usage.");
  app.callback([&] { needle::serve(options); });
  return needle::run_command(app, argc, argv);
}
