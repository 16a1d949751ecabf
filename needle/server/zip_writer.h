// A .zip that stores its files as they are: weights do not shrink, and every system opens it.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace needle {

// CRC-32 of zip, gzip and PNG (IEEE 802.3).
std::uint32_t zip_crc32(std::string_view bytes);

// Names are UTF-8. Files and archive must stay below 4 GiB: add throws Error.
class ZipWriter {
 public:
  // `write` gets the archive piece by piece, in order; false: nobody wants the rest.
  explicit ZipWriter(std::function<bool(std::string_view bytes)> write);

  // `name`: "folder/file.txt". False once `write` has returned false.
  bool add(const std::string& name, std::string_view bytes);
  bool finish();  // the directory at the end; nothing may be added after it

 private:
  bool send(std::string_view bytes);

  std::function<bool(std::string_view)> write_;
  std::string directory_;
  std::uint64_t offset_ = 0;
  std::uint16_t files_ = 0;
  bool open_ = true;
};

}  // namespace needle
