// Routes of the page that begin finetunings and give their results away.
#include <algorithm>
#include <memory>
#include <utility>

#include "needle/core/error.h"
#include "needle/core/log.h"
#include "needle/server/api_error.h"
#include "needle/server/body.h"
#include "needle/server/endpoint_rows.h"
#include "needle/server/job_rows.h"
#include "needle/server/playground.h"
#include "needle/server/tool_reader.h"
#include "needle/server/zip_writer.h"

namespace needle {
namespace {

namespace fs = std::filesystem;

HttpReply json_reply(const Json& json) {
  HttpReply reply{.body = json.dump(-1, ' ', false, Json::error_handler_t::replace)};
  reply.headers["Cache-Control"] = "no-store";
  return reply;
}

std::string text_of(const JsonValue& body, std::string_view key) {
  return read_string(body, key).value_or("");
}

const JsonValue& source_of(const JsonValue& body) {
  const JsonValue* source = body.find("source");
  if (source == nullptr || !source->is_object()) {
    throw bad_request("source", "missing; expected {\"kind\": ...}");
  }
  return *source;
}

// `body.rows` as lines; none if it is absent.
std::vector<std::string> given_rows(const JsonValue& body, const std::vector<Tool>& tools) {
  std::vector<std::string> lines;
  const JsonValue* rows = body.find("rows");
  if (rows == nullptr || rows->is_null()) {
    return lines;
  }
  if (!rows->is_array()) {
    throw bad_request("rows", "expected a list");
  }
  for (std::size_t i = 0; i < rows->items().size(); ++i) {
    const std::string path = format("rows[{}]", i);
    try {
      lines.push_back(row_line(rows->items()[i], tools, path));
    } catch (const DataError& error) {
      throw bad_request(path, error.what());
    }
  }
  return lines;
}

// Bundle and exported model belong together: what the bundle says of exporting is done.
std::string bundle_readme(const std::string& name, const std::string& written) {
  return format(
      "{}\n## The deployed model\n\n`{}.needle` is this checkpoint exported already. Put it where "
      "`needle-serve` finds it, or ask it here:\n\n```\nneedle-run --model {}.needle --tools "
      "tools.json --query \"...\"\nneedle-serve --model {}.needle\n```\n",
      written, name, name, name);
}

}  // namespace

HttpReply Playground::add_job(const HttpRequest& request, const Parts&) {
  const JsonValue body = parse_body(request.body);
  const std::string name = text_of(body, "name");
  if (!name.empty() && !is_file_name(name)) {
    throw bad_request("name", "expected letters, digits, '.', '_' and '-', at most 64");
  }
  const std::string kind = text_of(source_of(body), "kind");
  std::string id;
  if (kind == "synth" || kind == "endpoint") {
    id = add_made_job(kind, body, name);
  } else if (kind == "upload") {
    id = add_uploaded_job(source_of(body), name);
  } else if (kind == "job") {
    id = add_copied_job(body, name);
  } else {
    throw bad_request("source.kind", "expected synth, endpoint, upload or job");
  }
  return json_reply(jobs_.show(id));
}

std::string Playground::add_made_job(const std::string& kind, const JsonValue& body,
                                     const std::string& name) {
  const JsonValue& source = source_of(body);
  const ReadTools read = read_tools(body, options_.limits);
  const std::string& tools = read.json;
  if (read.tools.empty()) {
    throw bad_request("tools", "no tools: rows are made from them");
  }
  const auto count = read_integer(source, "count", 1, kMaxMadeRows).value_or(2000);
  if (kind == "synth") {
    const auto seed = read_integer(source, "seed", 0, std::int64_t{1} << 53).value_or(42);
    return jobs_.create(name, {{"kind", kind}, {"count", count}, {"seed", seed}}, tools,
                        [&](AtomicFileWriter& rows) {
                          write_synth_rows(rows, tools, count, static_cast<std::uint64_t>(seed));
                        });
  }
  const RowEndpoint endpoint{.url = text_of(source, "url"),
                             .model = text_of(source, "model"),
                             .key = text_of(source, "key"),
                             .ca_file = options_.endpoint_ca};
  try {
    check_endpoint(endpoint);
  } catch (const DataError& error) {
    throw bad_request("source.url", error.what());
  }
  return jobs_.create_slowly(
      name, {{"kind", kind}, {"count", count}, {"url", endpoint.url}, {"model", endpoint.model}},
      tools,
      [endpoint, count, list = read.tools](AtomicFileWriter& rows, const FinetuneJobs::Stop& stop) {
        return write_endpoint_rows(
            rows, {.endpoint = endpoint, .tools = list, .count = count, .stop = stop});
      });
}

std::string Playground::add_uploaded_job(const JsonValue& source, const std::string& name) {
  jobs_.prepare();
  const fs::path file = uploads_.take(text_of(source, "upload"), "rows");
  // The file goes with this scope, however it is left.
  const std::unique_ptr<const fs::path, void (*)(const fs::path*)> removed(
      &file, [](const fs::path* path) {
        std::error_code ignored;
        fs::remove(*path, ignored);
      });
  std::string tools;
  try {
    tools = tools_of_rows(file);
  } catch (const FormatError&) {  // a damaged gzip
    throw ApiError(400, "the file: a gzip stream that is damaged or cut", {.param = "upload"});
  }
  return jobs_.create(name, {{"kind", "upload"}}, tools,
                      [&](AtomicFileWriter& rows) { copy_rows(rows, file); });
}

std::string Playground::add_copied_job(const JsonValue& body, const std::string& name) {
  const std::string from = text_of(source_of(body), "job");
  const JobFiles files = jobs_.files(from);
  const std::string tools = read_file(files.tools());
  const std::vector<std::string> more = given_rows(body, parse_tools_text(tools));
  return jobs_.create(name.empty() ? jobs_.state(from).name : name,
                      {{"kind", "job"}, {"job", from}, {"added", more.size()}}, tools,
                      [&](AtomicFileWriter& rows) {
                        copy_rows(rows, files.rows());
                        for (const std::string& line : more) {
                          rows.write(line + "\n");
                        }
                      });
}

HttpReply Playground::add_rows(const HttpRequest& request, const Parts& parts) {
  const JsonValue body = parse_body(request.body);
  const std::string& id = parts.at(0);
  const auto lines = given_rows(body, parse_tools_text(read_file(jobs_.files(id).tools())));
  if (lines.empty()) {
    throw bad_request("rows", "missing; expected a list of rows");
  }
  jobs_.add_rows(id, lines);
  return json_reply(jobs_.show(id));
}

HttpReply Playground::start_job(const HttpRequest& request, const Parts& parts) {
  const JsonValue body = parse_body(request.body);
  const std::string base = read_string(body, "base").value_or("scratch");
  const std::string shape = read_string(body, "shape").value_or("small");
  if (base == "released" && options_.released.empty()) {
    throw bad_request("base", "the released weights are not on this machine");
  }
  if (base != "scratch" && base != "released") {
    if (jobs_.state(base).stage != JobStage::kDone) {
      throw bad_request("base", "that finetuning has no result to begin from");
    }
  }
  if (shape != "tiny" && shape != "small") {
    throw bad_request("shape", "expected tiny or small");
  }
  const auto epochs = read_integer(body, "epochs", 1, 100).value_or(8);
  jobs_.start(parts.at(0), {{"base", base}, {"shape", shape}, {"epochs", epochs}});
  return json_reply(jobs_.show(parts.at(0)));
}

HttpReply Playground::bundle(const HttpRequest&, const Parts& parts) {
  const JobState job = jobs_.state(parts.at(0));
  if (job.stage != JobStage::kDone) {
    throw ApiError(409, "this finetuning has no bundle yet", {.code = "not_done"});
  }
  const JobFiles files = jobs_.files(parts.at(0));
  std::vector<fs::path> inside;
  for (const auto& entry : fs::directory_iterator(files.bundle())) {
    if (entry.is_regular_file()) {
      inside.push_back(entry.path());
    }
  }
  std::ranges::sort(inside);
  HttpReply reply{.content_type = "application/zip"};
  reply.headers["Content-Disposition"] = format("attachment; filename=\"{}.zip\"", job.model);
  reply.headers["Cache-Control"] = "no-store";
  reply.stream = [inside, files, name = job.model](const HttpReply::Write& write) {
    ZipWriter zip(write);
    try {
      for (const fs::path& path : inside) {
        const std::string file = path.filename().string();
        const std::string bytes = read_file(path);
        if (!zip.add(name + "/" + file, file == "README.md" ? bundle_readme(name, bytes) : bytes)) {
          return;
        }
      }
      zip.add(name + "/" + name + ".needle", read_file(files.model()));
      zip.finish();
    } catch (const Error& error) {  // the head is sent: all that is left is an archive without end
      log_error("{}", error.what());
    }
  };
  return reply;
}

}  // namespace needle
