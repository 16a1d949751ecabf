#include "needle/server/endpoint_rows.h"

#include <algorithm>
#include <set>

#include <httplib.h>

#include "needle/core/error.h"
#include "needle/core/json.h"
#include "needle/server/job_rows.h"

namespace needle {
namespace {

constexpr std::int64_t kBatch = 20;
constexpr int kFailuresAllowed = 3;  // in a row
constexpr std::size_t kMaxReplyBytes = 4 << 20;
constexpr auto kReplyTime = std::chrono::seconds(120);

struct Address {
  std::string origin;  // "https://api.example.org"
  std::string path;    // "/v1/chat/completions"
};

Address address_of(const RowEndpoint& endpoint) {
  const std::size_t scheme = endpoint.url.find("://");
  const std::string kind = endpoint.url.substr(0, scheme == std::string::npos ? 0 : scheme);
  if ((kind != "http" && kind != "https") || endpoint.url.size() <= scheme + 3 ||
      endpoint.url[scheme + 3] == '/') {
    throw DataError("the endpoint's address: expected http://HOST/v1 or https://HOST/v1");
  }
  const std::size_t slash = std::min(endpoint.url.find('/', scheme + 3), endpoint.url.size());
  std::string path = endpoint.url.substr(slash);
  path.erase(std::find_if(path.rbegin(), path.rend(), [](char c) { return c != '/'; }).base(),
             path.end());
  return {.origin = endpoint.url.substr(0, slash), .path = path + "/chat/completions"};
}

std::string without_key(std::string text, const std::string& key) {
  for (std::size_t at = 0; !key.empty() && (at = text.find(key, at)) != std::string::npos;) {
    text.replace(at, key.size(), "***");
  }
  return text;
}

std::string prompt(const EndpointRequest& request, std::int64_t batch) {
  JsonValue tools = JsonValue::array();
  for (const Tool& tool : request.tools) {
    tools.items().push_back(tool.declared);
  }
  return format(
      "These are the tools of an assistant:\n{}\n\nWrite {} different requests that its users "
      "could make, and the calls that answer them. Vary length, tone and wording; use each tool "
      "about equally often; let about one in eight be something that no tool serves, answered by "
      "an empty list, and about one in eight need two calls. Copy every text value word for word "
      "from the request. Leave out optional parameters that the request does not mention. This is "
      "part {}: do not repeat earlier parts.\nAnswer with a JSON array alone, no other text: "
      "[{{\"query\": \"...\", \"answers\": [{{\"name\": \"...\", \"arguments\": {{}}}}]}}]",
      write_compact(JsonValue(tools), JsonEscapes::kUtf8), kBatch, batch + 1);
}

// Why no reply came, and what to do.
std::string why(const httplib::Client& client, httplib::Error error,
                const std::filesystem::path& ca_file) {
#ifdef CPPHTTPLIB_OPENSSL_SUPPORT
  constexpr std::string_view kRemedy =
      "nothing was sent. If the endpoint is one that you trust, give its certificate, or that of "
      "who signed it, to needle-serve --endpoint-ca FILE";
  switch (error) {
    case httplib::Error::SSLServerVerification:
      switch (client.get_openssl_verify_result()) {  // X509_V_*, names that need OpenSSL itself
        case 0:
          return "its certificate is for another host's name; nothing was sent. Ask for it by the "
                 "name in its certificate";
        case 9:
          return "its certificate is not valid yet; nothing was sent. Is the clock right?";
        case 10:
          return "its certificate has expired; nothing was sent";
        case 18:
        case 19:
        case 20:
        case 21:
          return format("its certificate is signed by nobody {}; {}",
                        ca_file.empty() ? "whom this machine trusts" : "in the file given",
                        kRemedy);
        default:
          return format("its certificate is not accepted (OpenSSL's reason {}); {}",
                        client.get_openssl_verify_result(), kRemedy);
      }
    case httplib::Error::SSLLoadingCerts:
      return ca_file.empty() ? "this machine's trusted certificates cannot be read"
                             : format("{}: expected certificates in PEM form", ca_file);
    case httplib::Error::SSLConnection:
      return "it does not answer as https does; is its address one of http://?";
    default:
      break;
  }
#endif
  return httplib::to_string(error);
}

// The content of the reply's message. Throws Error with what the endpoint says.
std::string ask(const EndpointRequest& request, std::int64_t batch) {
  const Address address = address_of(request.endpoint);
  httplib::Client client(address.origin);
  client.set_connection_timeout(std::chrono::seconds(15));
  client.set_read_timeout(kReplyTime);
#ifdef CPPHTTPLIB_OPENSSL_SUPPORT
  client.enable_server_certificate_verification(true);  // the default, which this relies on
  if (!request.endpoint.ca_file.empty()) {
    client.set_ca_cert_path(request.endpoint.ca_file.string());
  }
#endif
  httplib::Request http;
  http.method = "POST";
  http.path = address.path;
  http.set_header("Content-Type", "application/json");
  if (!request.endpoint.key.empty()) {
    http.set_header("Authorization", "Bearer " + request.endpoint.key);
  }
  http.body = Json{{"model", request.endpoint.model},
                   {"messages", {{{"role", "user"}, {"content", prompt(request, batch)}}}}}
                  .dump(-1, ' ', false, Json::error_handler_t::replace);
  std::string body;
  http.content_receiver = [&](const char* data, std::size_t size, std::uint64_t, std::uint64_t) {
    body.append(data, size);
    return body.size() <= kMaxReplyBytes && !request.stop();
  };
  const httplib::Result result = client.send(http);
  if (!result) {
    throw Error(
        format("{}: {}", address.origin, why(client, result.error(), request.endpoint.ca_file)));
  }
  const Json reply = Json::parse(body, nullptr, /*allow_exceptions=*/false);
  if (result->status != 200) {
    const Json error = reply.is_object() ? reply.value("error", Json()) : Json();
    throw Error(format("{} answered {}: {}", address.origin, result->status,
                       error.is_object() && error.contains("message") ? error["message"].dump()
                                                                      : body.substr(0, 200)));
  }
  try {
    return reply.at("choices").at(0).at("message").at("content").get<std::string>();
  } catch (const nlohmann::json::exception&) {
    throw Error(
        format("{}: expected a chat completion, got {}", address.origin, body.substr(0, 200)));
  }
}

}  // namespace

void check_endpoint(const RowEndpoint& endpoint) {
  address_of(endpoint);
  if (endpoint.key.find_first_of("\r\n") != std::string::npos) {
    throw DataError("the key: expected one line");
  }
}

void check_ca_file(const std::filesystem::path& path) {
  constexpr std::string_view kBegin = "-----BEGIN CERTIFICATE-----";
  if (read_file(path).find(kBegin) == std::string::npos) {
    throw FormatError(format("{}: expected certificates in PEM form ({})", path, kBegin));
  }
}

ParsedRows parse_endpoint_rows(std::string_view content, const std::vector<Tool>& tools) {
  ParsedRows rows;
  const std::size_t begin = content.find_first_of("[{");
  const std::size_t end = content.find_last_of("]}");
  const auto fail = [&](std::string problem) {
    ++rows.left_out;
    if (rows.first_problem.empty()) {
      rows.first_problem = std::move(problem);
    }
  };
  if (begin == content.npos || end == content.npos || end < begin) {
    fail("expected a JSON array of rows");
    return rows;
  }
  const JsonParseResult parsed = parse_json_value(content.substr(begin, end + 1 - begin));
  if (!parsed.value) {
    fail(parsed.error);
    return rows;
  }
  const JsonValue* inner = parsed.value->find("rows");
  const JsonValue& list = inner != nullptr ? *inner : *parsed.value;
  if (!list.is_array()) {
    fail("expected a JSON array of rows");
    return rows;
  }
  for (std::size_t i = 0; i < list.items().size(); ++i) {
    try {
      rows.lines.push_back(row_line(list.items()[i], tools, format("rows[{}]", i)));
    } catch (const Error& error) {
      fail(error.what());
    }
  }
  return rows;
}

std::string write_endpoint_rows(AtomicFileWriter& rows, const EndpointRequest& request) {
  std::set<std::string> seen;
  std::int64_t left_out = 0;
  int failures = 0;
  std::string problem;
  for (std::int64_t batch = 0; std::ssize(seen) < request.count && !request.stop(); ++batch) {
    const std::size_t before = seen.size();
    try {
      const ParsedRows parsed = parse_endpoint_rows(ask(request, batch), request.tools);
      left_out += parsed.left_out;
      problem = parsed.first_problem.empty() ? problem : parsed.first_problem;
      for (const std::string& line : parsed.lines) {
        if (std::ssize(seen) < request.count && seen.insert(line).second) {
          rows.write(line + "\n");
        }
      }
    } catch (const FileError&) {  // our disk, not the endpoint
      throw;
    } catch (const Error& error) {
      problem = without_key(error.what(), request.endpoint.key);
    }
    failures = seen.size() == before ? failures + 1 : 0;
    if (failures == kFailuresAllowed) {
      break;
    }
  }
  if (seen.empty() && !request.stop()) {
    throw Error(format("not one valid row came: {}", problem));
  }
  if (std::ssize(seen) < request.count) {
    return format("{} of {} rows came{}{}", seen.size(), request.count,
                  problem.empty() ? "" : "; last problem: ", problem);
  }
  return left_out == 0 ? "" : format("{} rows that do not fit the tools were left out", left_out);
}

}  // namespace needle
