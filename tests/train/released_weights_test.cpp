#include "needle/train/released_weights.h"

#include <atomic>
#include <cstdlib>
#include <fstream>
#include <thread>

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <httplib.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using testing::HasSubstr;

// Serves one file with ranges; can break transfers, change the file, and count requests.
class WeightsServer {
 public:
  WeightsServer() : contents_(random_bytes(200000)) {
    server_.Get("/weights/needle.pkl", [this](const httplib::Request& request,
                                              httplib::Response& response) {
      ++requests_;
      const bool ranged = request.has_header("Range");
      ranged_ += ranged ? 1 : 0;
      response.set_header("ETag", etag_);
      if (ranged && request.has_header("If-Range") &&
          request.get_header_value("If-Range") != etag_) {
        // Another version by now: the whole of it. The library would cut out the range of any 200.
        const_cast<httplib::Request&>(request).ranges.clear();
      }
      const std::size_t stop_at = break_after_;
      break_after_ = 0;
      response.set_content_provider(
          contents_.size(), "application/octet-stream",
          [this, stop_at](std::size_t offset, std::size_t length, httplib::DataSink& sink) {
            if (stop_at != 0 && offset >= stop_at) {
              return false;  // the connection breaks
            }
            sink.write(contents_.data() + offset, std::min<std::size_t>(length, 10000));
            return true;
          });
    });
    server_.Get("/weights/tokenizer/needle.model",
                [](const httplib::Request&, httplib::Response& response) {
                  response.set_content("tokenizer", "application/octet-stream");
                });
    server_.Get("/weights/needle.pkl.sha256",
                [this](const httplib::Request&, httplib::Response& response) {
                  response.set_content(sha256_hex(contents_) + "  needle.pkl\n", "text/plain");
                });
    server_.Get("/moved/needle.pkl", [](const httplib::Request&, httplib::Response& response) {
      response.set_redirect("/weights/needle.pkl");
    });
    port_ = server_.bind_to_any_port("127.0.0.1");
    thread_ = std::thread([this] { server_.listen_after_bind(); });
    while (!server_.is_running()) {
      std::this_thread::yield();
    }
  }
  ~WeightsServer() {
    server_.stop();
    thread_.join();
  }

  std::string url(const std::string& path) const {
    return "http://127.0.0.1:" + std::to_string(port_) + path;
  }
  const std::string& contents() const { return contents_; }
  void break_once_after(std::size_t bytes) { break_after_ = bytes; }
  void replace_file() {
    contents_ = random_bytes(150000);
    etag_ = "\"second\"";
  }
  int requests() const { return requests_; }
  int ranged() const { return ranged_; }

 private:
  static std::string random_bytes(std::size_t count) {
    std::string bytes(count, '\0');
    std::uint32_t state = static_cast<std::uint32_t>(count);
    for (char& byte : bytes) {
      state = state * 1664525U + 1013904223U;
      byte = static_cast<char>(state >> 24);
    }
    return bytes;
  }

  httplib::Server server_;
  std::thread thread_;
  int port_ = 0;
  std::string contents_;
  std::string etag_ = "\"first\"";
  std::atomic<std::size_t> break_after_{0};
  std::atomic<int> requests_{0};
  std::atomic<int> ranged_{0};
};

class Environment {
 public:
  Environment(const char* name, const std::string& value) : name_(name) {
    setenv(name, value.c_str(), 1);
  }
  ~Environment() { unsetenv(name_); }
  Environment(const Environment&) = delete;
  Environment& operator=(const Environment&) = delete;

 private:
  const char* name_;
};

DownloadOptions quick(const std::string& url, const std::filesystem::path& destination) {
  DownloadOptions options;
  options.url = url;
  options.destination = destination;
  options.first_wait_seconds = 0.01;
  return options;
}

TEST(ReleasedWeightsTest, DownloadsWhatTheServerHas) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  DownloadOptions options = quick(server.url("/moved/needle.pkl"), folder / "deep/needle.pkl");
  options.sha256 = sha256_hex(server.contents());
  std::uint64_t last = 0;
  options.on_progress = [&](std::uint64_t done, std::uint64_t total) {
    EXPECT_GE(done, last);
    EXPECT_EQ(total, server.contents().size());
    last = done;
  };
  download_file(options);
  EXPECT_EQ(read_file(folder / "deep/needle.pkl"), server.contents());
  EXPECT_EQ(last, server.contents().size());
  EXPECT_FALSE(std::filesystem::exists(folder / "deep/needle.pkl.part"));
}

TEST(ReleasedWeightsTest, ABrokenTransferGoesOnWhereItStopped) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  server.break_once_after(50000);
  download_file(quick(server.url("/weights/needle.pkl"), folder / "needle.pkl"));
  EXPECT_EQ(read_file(folder / "needle.pkl"), server.contents());
  EXPECT_EQ(server.requests(), 2);
  EXPECT_EQ(server.ranged(), 1);
}

TEST(ReleasedWeightsTest, ALaterProcessGoesOnToo) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  DownloadOptions options = quick(server.url("/weights/needle.pkl"), folder / "needle.pkl");
  options.attempts = 1;
  server.break_once_after(50000);
  EXPECT_THROW(download_file(options), Error);
  EXPECT_FALSE(std::filesystem::exists(folder / "needle.pkl"));
  EXPECT_GE(std::filesystem::file_size(folder / "needle.pkl.part"), 50000U);
  download_file(options);
  EXPECT_EQ(read_file(folder / "needle.pkl"), server.contents());
  EXPECT_EQ(server.ranged(), 1);
}

TEST(ReleasedWeightsTest, AFileThatChangedMeanwhileIsFetchedAnew) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  DownloadOptions options = quick(server.url("/weights/needle.pkl"), folder / "needle.pkl");
  options.attempts = 1;
  server.break_once_after(50000);
  EXPECT_THROW(download_file(options), Error);
  server.replace_file();
  options.attempts = 3;
  download_file(options);
  EXPECT_EQ(read_file(folder / "needle.pkl"), server.contents());
}

TEST(ReleasedWeightsTest, AWrongHashLeavesNothingBehind) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  DownloadOptions options = quick(server.url("/weights/needle.pkl"), folder / "needle.pkl");
  options.sha256 = std::string(64, '0');
  try {
    download_file(options);
    FAIL() << "a wrong hash was accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr(sha256_hex(server.contents())));
  }
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(ReleasedWeightsTest, AMissingFileIsNotTriedAgain) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  try {
    download_file(quick(server.url("/nothing"), folder / "needle.pkl"));
    FAIL() << "404 was accepted";
  } catch (const Error& error) {
    EXPECT_THAT(error.what(), HasSubstr("404"));
  }
  EXPECT_THROW(download_file(quick("ftp://example.org/x", folder / "x")), ConfigError);
}

TEST(ReleasedWeightsTest, OfflineNeverAsks) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  const Environment offline("HF_HUB_OFFLINE", "1");
  EXPECT_TRUE(is_offline());
  EXPECT_THROW(download_file(quick(server.url("/weights/needle.pkl"), folder / "needle.pkl")),
               Error);
  EXPECT_THROW(download_released_weights(folder.path()), Error);
  EXPECT_EQ(server.requests(), 0);
}

TEST(ReleasedWeightsTest, WeightsAndTokenizerComeTogetherAndAreVerified) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  EXPECT_FALSE(find_released_weights(folder.path()).has_value());
  const Environment url("NEEDLE_WEIGHTS_URL", server.url("/weights/needle.pkl"));
  EXPECT_EQ(released_weights_url(), server.url("/weights/needle.pkl"));
  const FetchReport report = download_released_weights(folder.path());
  EXPECT_TRUE(report.verified);
  EXPECT_EQ(read_file(report.files.weights), server.contents());
  EXPECT_EQ(read_file(report.files.tokenizer), "tokenizer");
  EXPECT_EQ(find_released_weights(folder.path())->tokenizer, report.files.tokenizer);
}

TEST(ReleasedWeightsTest, TheEnvironmentsHashWins) {
  WeightsServer server;
  const test::TemporaryFolder folder;
  const Environment url("NEEDLE_WEIGHTS_URL", server.url("/weights/needle.pkl"));
  {
    const Environment hash("NEEDLE_WEIGHTS_SHA256", std::string(64, 'a'));
    EXPECT_THROW(download_released_weights(folder.path()), Error);
  }
  {
    const Environment hash("NEEDLE_WEIGHTS_SHA256", "not a hash");
    EXPECT_THROW(download_released_weights(folder.path()), ConfigError);
  }
  EXPECT_FALSE(find_released_weights(folder.path()).has_value());
}

}  // namespace
}  // namespace needle
