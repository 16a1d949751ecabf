// Files that a page sends in pieces: a request's body stays small, whatever the file's size.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <string_view>

namespace needle {

struct UploadLimits {
  std::uint64_t model_bytes = std::uint64_t{512} << 20;
  std::uint64_t rows_bytes = std::uint64_t{64} << 20;
  std::size_t at_once = 4;
  std::chrono::seconds idle{600};  // then an upload that gets nothing is given up
};

// Thread-safe. An upload's id is a number of ours; the client's file name becomes no path.
class UploadStore {
 public:
  // `folder` is made when it is needed; leftovers of an earlier server are removed from it then.
  UploadStore(std::filesystem::path folder, UploadLimits limits);
  ~UploadStore();  // removes what is there

  // `kind`: "model" or "rows". Throws ApiError 400, 413 beyond the limit.
  void check_size(std::string_view kind, std::uint64_t bytes) const;
  // The same, and 429 beyond `at_once`.
  std::string begin(std::string_view kind, std::uint64_t bytes);
  // Returns the bytes that are there now. Throws ApiError 404, 409 if `offset` is another than
  // that (its message says which), 413 beyond what was announced, 507.
  std::uint64_t add(const std::string& id, std::uint64_t offset, std::string_view bytes);
  // The whole file, which is the caller's to move or to remove. Throws ApiError 404, 409 if bytes
  // are missing or it is of another kind.
  std::filesystem::path take(const std::string& id, std::string_view kind);

 private:
  struct Upload {
    std::string kind;
    std::uint64_t bytes = 0;
    std::uint64_t received = 0;
    std::filesystem::path path;
    std::chrono::steady_clock::time_point used;
  };
  void give_up_idle();
  Upload& find(const std::string& id);

  const std::filesystem::path folder_;
  const UploadLimits limits_;
  std::mutex mutex_;
  std::map<std::string, Upload> uploads_;
  std::uint64_t begun_ = 0;
};

}  // namespace needle
