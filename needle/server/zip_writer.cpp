#include "needle/server/zip_writer.h"

#include <array>
#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::uint64_t kMost = 0xffffffff;  // sizes have 32 bits

constexpr std::array<std::uint32_t, 256> make_crc_table() {
  std::array<std::uint32_t, 256> table{};
  for (std::uint32_t i = 0; i < table.size(); ++i) {
    std::uint32_t value = i;
    for (int bit = 0; bit < 8; ++bit) {
      value = (value >> 1) ^ ((value & 1) != 0 ? 0xedb88320U : 0U);
    }
    table[i] = value;
  }
  return table;
}

void put(std::string& out, std::uint32_t value, int bytes) {
  for (int i = 0; i < bytes; ++i) {
    out.push_back(static_cast<char>((value >> (8 * i)) & 0xff));
  }
}

// What stands in a file's head and in the directory alike (APPNOTE 4.4).
std::string shared_fields(const std::string& name, std::string_view bytes) {
  constexpr std::uint32_t kVersion = 20;
  constexpr std::uint32_t kUtf8Names = 1 << 11;
  constexpr std::uint32_t kStored = 0;
  constexpr std::uint32_t kDate = (1 << 5) | 1;  // 1980-01-01: equal contents, equal archives
  std::string fields;
  put(fields, kVersion, 2);
  put(fields, kUtf8Names, 2);
  put(fields, kStored, 2);
  put(fields, 0, 2);
  put(fields, kDate, 2);
  put(fields, zip_crc32(bytes), 4);
  put(fields, static_cast<std::uint32_t>(bytes.size()), 4);
  put(fields, static_cast<std::uint32_t>(bytes.size()), 4);
  put(fields, static_cast<std::uint32_t>(name.size()), 2);
  put(fields, 0, 2);  // no extra field
  return fields;
}

}  // namespace

std::uint32_t zip_crc32(std::string_view bytes) {
  static constexpr auto kTable = make_crc_table();
  std::uint32_t crc = 0xffffffff;
  for (const char c : bytes) {
    crc = (crc >> 8) ^ kTable[(crc ^ static_cast<unsigned char>(c)) & 0xff];
  }
  return ~crc;
}

ZipWriter::ZipWriter(std::function<bool(std::string_view)> write) : write_(std::move(write)) {}

bool ZipWriter::send(std::string_view bytes) {
  offset_ += bytes.size();
  return open_ = open_ && write_(bytes);
}

bool ZipWriter::add(const std::string& name, std::string_view bytes) {
  if (offset_ + bytes.size() > kMost) {
    throw Error(format("{}: the archive would be longer than 4 GiB", name));
  }
  const std::string fields = shared_fields(name, bytes);
  put(directory_, 0x02014b50, 4);
  put(directory_, (3 << 8) | 20, 2);  // made on Unix, whose permissions follow
  directory_ += fields;
  put(directory_, 0, 2);               // comment
  put(directory_, 0, 2);               // disk
  put(directory_, 0, 2);               // internal attributes
  put(directory_, 0100644U << 16, 4);  // a file that its owner may write
  put(directory_, static_cast<std::uint32_t>(offset_), 4);
  directory_ += name;
  ++files_;
  std::string head;
  put(head, 0x04034b50, 4);
  head += fields;
  head += name;
  return send(head) && send(bytes);
}

bool ZipWriter::finish() {
  const auto begin = static_cast<std::uint32_t>(offset_);
  std::string end;
  put(end, 0x06054b50, 4);
  put(end, 0, 4);  // disks
  put(end, files_, 2);
  put(end, files_, 2);
  put(end, static_cast<std::uint32_t>(directory_.size()), 4);
  put(end, begin, 4);
  put(end, 0, 2);  // comment
  return send(directory_) && send(end);
}

}  // namespace needle
