#include "needle/train/tensorboard.h"

#include <array>
#include <bit>
#include <chrono>
#include <cstring>
#include <vector>

#include <unistd.h>

#include "needle/core/error.h"
#include "needle/core/file.h"

namespace needle {
namespace internal {

std::uint32_t masked_crc32c(std::string_view bytes) {
  const std::uint32_t crc = crc32c(std::as_bytes(std::span(bytes)));
  return std::rotr(crc, 15) +
         0xa282ead8U;  // so that the CRC of data that holds a CRC is no trivial value
}

}  // namespace internal

namespace {

enum WireType : std::uint8_t { kVarint = 0, kFixed64 = 1, kBytes = 2, kFixed32 = 5 };

// Protocol buffers' wire format, as far as these messages need it.
class Message {
 public:
  void add_varint(int field, std::uint64_t value) {
    tag(field, kVarint);
    varint(value);
  }
  void add_double(int field, double value) {
    tag(field, kFixed64);
    little_endian(std::bit_cast<std::uint64_t>(value), 8);
  }
  void add_float(int field, float value) {
    tag(field, kFixed32);
    little_endian(std::bit_cast<std::uint32_t>(value), 4);
  }
  void add_bytes(int field, std::string_view value) {
    tag(field, kBytes);
    varint(value.size());
    bytes_ += value;
  }
  const std::string& bytes() const { return bytes_; }

 private:
  void tag(int field, WireType type) { varint(static_cast<std::uint64_t>(field) << 3 | type); }
  void varint(std::uint64_t value) {
    while (value >= 0x80) {
      bytes_ += static_cast<char>(0x80 | (value & 0x7f));
      value >>= 7;
    }
    bytes_ += static_cast<char>(value);
  }
  void little_endian(std::uint64_t value, int width) {
    for (int i = 0; i < width; ++i) {
      bytes_ += static_cast<char>(value >> (8 * i) & 0xff);
    }
  }
  std::string bytes_;
};

double seconds_since_epoch() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

Message event(std::int64_t step) {
  Message message;
  message.add_double(1, seconds_since_epoch());
  message.add_varint(2, static_cast<std::uint64_t>(step));
  return message;
}

std::string host_name() {
  std::array<char, 256> name{};
  return gethostname(name.data(), name.size() - 1) == 0 && name[0] != '\0' ? name.data()
                                                                           : "localhost";
}

// TensorBoard reads files in the order of their names: time first, then a counter for two files of
// one second.
std::filesystem::path new_event_file(const std::filesystem::path& folder) {
  for (int attempt = 0;; ++attempt) {
    const auto path = folder / format("events.out.tfevents.{:010d}.{}.{}.{}",
                                      static_cast<std::int64_t>(seconds_since_epoch()), host_name(),
                                      static_cast<std::int64_t>(getpid()), attempt);
    if (!std::filesystem::exists(path)) {
      return path;
    }
  }
}

}  // namespace

TensorBoardWriter::TensorBoardWriter(const std::filesystem::path& folder,
                                     std::int64_t resume_step) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  path_ = new_event_file(folder);
  file_.open(path_, std::ios::binary);
  if (!file_) {
    throw FileError(
        format("{}: cannot create the TensorBoard file: {}", path_, std::strerror(errno)));
  }
  Message version = event(0);
  version.add_bytes(3, "brain.Event:2");
  write_record(version.bytes());
  if (resume_step > 0) {
    constexpr std::uint64_t kStart =
        1;  // SessionLog.START: events of this step and later are stale
    Message session;
    session.add_varint(1, kStart);
    Message start = event(resume_step + 1);
    start.add_bytes(7, session.bytes());
    write_record(start.bytes());
  }
}

void TensorBoardWriter::write(std::int64_t step, std::span<const Scalar> scalars) {
  Message summary;
  for (const auto& [tag, value] : scalars) {
    Message entry;
    entry.add_bytes(1, tag);
    entry.add_float(2, static_cast<float>(value));
    summary.add_bytes(1, entry.bytes());
  }
  Message message = event(step);
  message.add_bytes(5, summary.bytes());
  write_record(message.bytes());
}

void TensorBoardWriter::write_record(std::string_view bytes) {
  const auto little_endian = [](std::uint64_t value, int width) {
    std::string text;
    for (int i = 0; i < width; ++i) {
      text += static_cast<char>(value >> (8 * i) & 0xff);
    }
    return text;
  };
  const std::string length = little_endian(bytes.size(), 8);
  file_ << length << little_endian(internal::masked_crc32c(length), 4) << bytes
        << little_endian(internal::masked_crc32c(bytes), 4);
  file_.flush();
  if (!file_) {
    throw FileError(
        format("{}: cannot write the TensorBoard file: {}", path_, std::strerror(errno)));
  }
}

}  // namespace needle
