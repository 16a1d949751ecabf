// The routes of the page beyond the API: files come in, finetunings run, bundles go out. They
// answer to this machine alone.
#pragma once

#include <array>
#include <cstddef>
#include <filesystem>
#include <string>
#include <vector>

#include "needle/calls/json_value.h"
#include "needle/server/finetune_jobs.h"
#include "needle/server/limits.h"
#include "needle/server/route_extension.h"
#include "needle/server/upload_store.h"

namespace needle {

struct PlaygroundOptions {
  std::filesystem::path folder;    // everything is kept below it: models/, jobs/, uploads/
  std::filesystem::path released;  // the published weights, if they are there; else empty
  std::filesystem::path train_program;
  std::filesystem::path export_program;
  std::filesystem::path endpoint_ca;  // RowEndpoint::ca_file
  std::uint64_t min_free_bytes = std::uint64_t{256} << 20;
  ServerLimits limits;
  UploadLimits uploads;
};

// Thread-safe.
class Playground final : public RouteExtension {
 public:
  explicit Playground(PlaygroundOptions options);

  bool owns(std::string_view path) const override;
  std::vector<RouteName> routes() const override;
  void check_head(const HttpRequest& request) const override;
  HttpReply handle(const HttpRequest& request) override;

  // Where uploaded and finetuned models are: to be served, too.
  std::filesystem::path models_folder() const { return options_.folder / "models"; }

 private:
  using Parts = std::vector<std::string>;  // what stands for the {names} of a route's path
  struct Route;
  static const std::array<Route, 15> kRoutes;
  const Route* find_route(const HttpRequest& request, Parts& parts, bool any_method) const;

  HttpReply status(const HttpRequest& request, const Parts& parts);
  HttpReply begin_upload(const HttpRequest& request, const Parts& parts);
  HttpReply add_to_upload(const HttpRequest& request, const Parts& parts);
  HttpReply add_model(const HttpRequest& request, const Parts& parts);
  HttpReply list_jobs(const HttpRequest& request, const Parts& parts);
  HttpReply add_job(const HttpRequest& request, const Parts& parts);
  HttpReply show_job(const HttpRequest& request, const Parts& parts);
  HttpReply show_rows(const HttpRequest& request, const Parts& parts);
  HttpReply show_tools(const HttpRequest& request, const Parts& parts);
  HttpReply add_rows(const HttpRequest& request, const Parts& parts);
  HttpReply start_job(const HttpRequest& request, const Parts& parts);
  HttpReply act_on_job(const HttpRequest& request, const Parts& parts);
  HttpReply bundle(const HttpRequest& request, const Parts& parts);

  std::string add_made_job(const std::string& kind, const JsonValue& body, const std::string& name);
  std::string add_uploaded_job(const JsonValue& body, const std::string& name);
  std::string add_copied_job(const JsonValue& body, const std::string& name);

  const PlaygroundOptions options_;
  FinetuneJobs jobs_;
  UploadStore uploads_;
};

// Throws ApiError 403 unless the request comes from this machine, for this machine's name, from no
// page of another origin and through no proxy that says so.
void check_local(const HttpRequest& request);

}  // namespace needle
