#include "needle/train/released_weights.h"

#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <thread>

#include <httplib.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace {

constexpr const char* kPublishedWeights =
    "https://huggingface.co/Cactus-Compute/needle/resolve/main/needle.pkl";
constexpr std::size_t kMaxSmallFile = 64 * 1024;  // a checksum file has 64 characters and a name

std::string environment(const char* name) {
  const char* value = std::getenv(name);
  return value == nullptr ? "" : value;
}

struct Url {
  std::string origin;  // scheme://host:port
  std::string path;    // with the query
};

Url split_url(const std::string& url) {
  const std::size_t scheme_end = url.find("://");
  const std::string scheme = scheme_end == std::string::npos ? "" : url.substr(0, scheme_end);
  if (scheme != "http" && scheme != "https") {
    throw ConfigError(format("\"{}\" is not a http:// or https:// address", url));
  }
  const std::size_t path_begin = url.find('/', scheme_end + 3);
  if (path_begin == std::string::npos) {
    return {url, "/"};
  }
  return {url.substr(0, path_begin), url.substr(path_begin)};
}

void refuse_offline(const std::string& url) {
  if (is_offline()) {
    throw Error(format(
        "{} is not downloaded because HF_HUB_OFFLINE is set; unset it, or put the file in place",
        url));
  }
}

httplib::Client make_client(const std::string& origin) {
  httplib::Client client(origin);
  client.set_follow_location(true);
  client.set_connection_timeout(std::chrono::seconds(15));
  client.set_read_timeout(std::chrono::seconds(60));
  return client;
}

// A small text file, or nothing if the server has none.
std::optional<std::string> fetch_text(const std::string& url) {
  const Url parts = split_url(url);
  httplib::Client client = make_client(parts.origin);
  std::string body;
  const auto response = client.Get(parts.path, [&](const char* data, std::size_t size) {
    body.append(data, size);
    return body.size() <= kMaxSmallFile;
  });
  if (!response || response->status != 200) {
    return std::nullopt;
  }
  return body;
}

// "<64 hex digits>[  name]" -> the digits in lower case; nothing if the text is something else.
std::optional<std::string> parse_sha256(std::string_view text) {
  const std::size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string_view::npos || text.size() - begin < 64) {
    return std::nullopt;
  }
  std::string digits(text.substr(begin, 64));
  std::transform(digits.begin(), digits.end(), digits.begin(), [](char c) {
    return c >= 'A' && c <= 'F' ? static_cast<char>(c - 'A' + 'a') : c;
  });
  const bool is_hex = digits.find_first_not_of("0123456789abcdef") == std::string::npos;
  const bool ends = begin + 64 == text.size() ||
                    std::string_view(" \t\r\n").find(text[begin + 64]) != std::string_view::npos;
  return is_hex && ends ? std::optional(digits) : std::nullopt;
}

// The bytes so far (destination.part) and which version of the server's file they belong to
// (destination.part.etag).
class PartialFile {
 public:
  explicit PartialFile(const std::filesystem::path& destination)
      : path_(destination.string() + ".part"), etag_path_(destination.string() + ".part.etag") {}

  const std::filesystem::path& path() const { return path_; }
  std::uint64_t size() const {
    std::error_code error;
    const auto bytes = std::filesystem::file_size(path_, error);
    return error ? 0 : bytes;
  }
  std::string etag() const {
    return std::filesystem::exists(etag_path_) ? read_file(etag_path_) : "";
  }
  void begin(const std::string& etag) {
    remove();
    if (!etag.empty()) {
      write_file_atomic(etag_path_, etag);
    }
  }
  void append(std::string_view bytes) {
    if (!stream_.is_open()) {
      stream_.open(path_, std::ios::binary | std::ios::app);
    }
    stream_.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!stream_) {
      throw FileError(format("{}: cannot write: {}", path_, std::strerror(errno)));
    }
  }
  void close() {
    if (stream_.is_open()) {
      stream_.close();
      if (!stream_) {
        throw FileError(format("{}: cannot write: {}", path_, std::strerror(errno)));
      }
    }
  }
  void remove() {
    stream_.close();
    stream_.clear();
    std::error_code ignored;
    std::filesystem::remove(path_, ignored);
    std::filesystem::remove(etag_path_, ignored);
  }
  void finish(const std::filesystem::path& destination) {
    std::filesystem::rename(path_, destination);
    std::error_code ignored;
    std::filesystem::remove(etag_path_, ignored);
  }

 private:
  std::filesystem::path path_;
  std::filesystem::path etag_path_;
  std::ofstream stream_;
};

enum class Attempt { kDone, kBroken, kStartOver };

// One request for what is still missing. Throws when trying again is of no use.
Attempt transfer(const DownloadOptions& options, PartialFile& part, std::string& problem) {
  const Url url = split_url(options.url);
  httplib::Client client = make_client(url.origin);
  httplib::Headers headers = {{"Accept-Encoding", "identity"}};
  const std::uint64_t have = part.size();
  if (have > 0) {
    headers.emplace("Range", format("bytes={}-", have));
    if (const std::string etag = part.etag(); !etag.empty()) {
      headers.emplace("If-Range", etag);
    }
  }
  int status = 0;
  std::uint64_t done = 0;
  std::uint64_t total = 0;
  std::exception_ptr failure;
  const auto guarded = [&failure](const auto& action) {  // no exception may cross the HTTP library
    try {
      action();
      return true;
    } catch (...) {
      failure = std::current_exception();
      return false;
    }
  };
  const auto on_response = [&](const httplib::Response& response) {
    status = response.status;
    if (status != 200 && status != 206) {
      return false;
    }
    if (status == 206 &&
        !response.get_header_value("Content-Range").starts_with(format("bytes {}-", have))) {
      status = 416;  // not the bytes that were asked for
      return false;
    }
    done = status == 206 ? have : 0;
    const std::string length = response.get_header_value("Content-Length");
    total = length.empty() ? 0 : done + std::strtoull(length.c_str(), nullptr, 10);
    return status == 206 || guarded([&] {
             const std::string etag = response.get_header_value("ETag");
             part.begin(etag.starts_with("W/") ? ""
                                               : etag);  // a weak tag does not promise equal bytes
           });
  };
  const auto on_data = [&](const char* data, std::size_t size) {
    if (!guarded([&] { part.append({data, size}); })) {
      return false;
    }
    done += size;
    if (options.on_progress) {
      options.on_progress(done, total);
    }
    return true;
  };
  const auto result = client.Get(url.path, headers, on_response, on_data);
  if (failure) {
    std::rethrow_exception(failure);
  }
  part.close();
  if (status == 416) {
    part.remove();
    return Attempt::kStartOver;
  }
  if (status == 0 ||
      (result.error() != httplib::Error::Success && (status == 200 || status == 206))) {
    problem = httplib::to_string(result.error());
    return Attempt::kBroken;
  }
  if (status >= 500) {
    problem = format("the server answered {}", status);
    return Attempt::kBroken;
  }
  if (status != 200 && status != 206) {
    throw Error(format("{}: the server answered {}", options.url, status));
  }
  if (total != 0 && done != total) {
    problem = format("{} of {} bytes came", done, total);
    return Attempt::kBroken;
  }
  return Attempt::kDone;
}

std::string expected_sha256(const std::string& url) {
  if (const std::string given = environment("NEEDLE_WEIGHTS_SHA256"); !given.empty()) {
    if (const auto digits = parse_sha256(given)) {
      return *digits;
    }
    throw ConfigError(format("NEEDLE_WEIGHTS_SHA256=\"{}\" is not 64 hexadecimal digits", given));
  }
  const auto text = fetch_text(url + ".sha256");
  return text ? parse_sha256(*text).value_or("") : "";
}

}  // namespace

std::filesystem::path released_weights_folder() { return needle_home() / "released"; }

std::optional<ReleasedWeights> find_released_weights(const std::filesystem::path& folder) {
  if (!std::filesystem::is_regular_file(folder / "needle.pkl")) {
    return std::nullopt;
  }
  const bool has_tokenizer = std::filesystem::is_regular_file(folder / "needle.model");
  return ReleasedWeights{folder / "needle.pkl", has_tokenizer ? folder / "needle.model" : ""};
}

bool is_offline() {
  std::string value = environment("HF_HUB_OFFLINE");
  std::transform(value.begin(), value.end(), value.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  return value == "1" || value == "true" || value == "yes" || value == "on";
}

std::string released_weights_url() {
  const std::string given = environment("NEEDLE_WEIGHTS_URL");
  return given.empty() ? kPublishedWeights : given;
}

void download_file(const DownloadOptions& options) {
  refuse_offline(options.url);
  std::error_code error;
  std::filesystem::create_directories(options.destination.parent_path(), error);
  PartialFile part(options.destination);
  std::string problem = "no answer";
  double wait = options.first_wait_seconds;
  Attempt outcome = Attempt::kBroken;
  for (int attempt = 0; attempt < options.attempts && outcome != Attempt::kDone; ++attempt) {
    if (attempt > 0 && outcome == Attempt::kBroken) {
      std::this_thread::sleep_for(std::chrono::duration<double>(wait));
      wait *= 2;
    }
    outcome = transfer(options, part, problem);
  }
  if (outcome != Attempt::kDone) {
    throw Error(
        format("{}: download failed after {} attempts: {}; what arrived is kept and the next "
               "attempt goes on "
               "from there",
               options.url, options.attempts, problem));
  }
  if (!options.sha256.empty()) {
    const std::string actual = sha256_file(part.path());
    if (actual != options.sha256) {
      part.remove();
      throw Error(
          format("{}: SHA-256 is {}, expected {}; the file was removed, try again or check the "
                 "expected value",
                 options.url, actual, options.sha256));
    }
  }
  part.finish(options.destination);
}

FetchReport download_released_weights(
    const std::filesystem::path& folder,
    const std::function<void(std::string_view, std::uint64_t, std::uint64_t)>& on_progress) {
  const std::string weights_url = released_weights_url();
  refuse_offline(weights_url);
  std::string tokenizer_url = environment("NEEDLE_TOKENIZER_URL");
  if (tokenizer_url.empty()) {
    tokenizer_url = weights_url.substr(0, weights_url.rfind('/') + 1) + "tokenizer/needle.model";
  }
  const auto progress_of = [&](std::string_view title) {
    return [&on_progress, title](std::uint64_t done, std::uint64_t total) {
      if (on_progress) {
        on_progress(title, done, total);
      }
    };
  };
  const std::string sha256 = expected_sha256(weights_url);
  // The tokenizer is small: a wrong address shows before the large file comes.
  if (!std::filesystem::exists(folder / "needle.model")) {
    download_file({.url = tokenizer_url,
                   .destination = folder / "needle.model",
                   .sha256 = "",
                   .on_progress = progress_of("needle.model")});
  }
  download_file({.url = weights_url,
                 .destination = folder / "needle.pkl",
                 .sha256 = sha256,
                 .on_progress = progress_of("needle.pkl")});
  return {.files = {folder / "needle.pkl", folder / "needle.model"}, .verified = !sha256.empty()};
}

}  // namespace needle
