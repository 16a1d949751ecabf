#include "needle/train/tensorboard.h"

#include <bit>
#include <cstring>

#include <gtest/gtest.h>

#include "needle/core/file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

// Reads TFRecord framing and the few protobuf fields that the writer uses, independently of it.
struct Event {
  std::uint64_t step = 0;
  double wall_time = 0;
  std::string file_version;
  std::vector<std::pair<std::string, float>> scalars;
  std::optional<std::uint64_t> session_status;
};

class Reader {
 public:
  explicit Reader(std::string_view bytes) : bytes_(bytes) {}
  bool done() const { return at_ == bytes_.size(); }
  std::string_view take(std::size_t size) {
    if (bytes_.size() - at_ < size) {
      throw std::runtime_error("record is cut");
    }
    at_ += size;
    return bytes_.substr(at_ - size, size);
  }
  template <typename T>
  T fixed() {
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }
  std::uint64_t varint() {
    std::uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const auto byte = static_cast<std::uint8_t>(take(1)[0]);
      value |= static_cast<std::uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) {
        return value;
      }
    }
  }

 private:
  std::string_view bytes_;
  std::size_t at_ = 0;
};

Event parse_event(std::string_view bytes) {
  Event event;
  for (Reader reader(bytes); !reader.done();) {
    switch (reader.varint()) {
      case 1 << 3 | 1:
        event.wall_time = reader.fixed<double>();
        break;
      case 2 << 3 | 0:
        event.step = reader.varint();
        break;
      case 3 << 3 | 2:
        event.file_version = reader.take(reader.varint());
        break;
      case 5 << 3 | 2: {
        for (Reader summary(reader.take(reader.varint())); !summary.done();) {
          EXPECT_EQ(summary.varint(), 1U << 3 | 2);
          Reader value(summary.take(summary.varint()));
          EXPECT_EQ(value.varint(), 1U << 3 | 2);
          const std::string tag(value.take(value.varint()));
          EXPECT_EQ(value.varint(), 2U << 3 | 5);
          event.scalars.emplace_back(tag, value.fixed<float>());
          EXPECT_TRUE(value.done());
        }
        break;
      }
      case 7 << 3 | 2: {
        Reader session(reader.take(reader.varint()));
        EXPECT_EQ(session.varint(), 1U << 3 | 0);
        event.session_status = session.varint();
        break;
      }
      default:
        throw std::runtime_error("unexpected field");
    }
  }
  return event;
}

// CRC-32C bit by bit, as a check of the masked one in the file.
std::uint32_t slow_masked_crc(std::string_view bytes) {
  std::uint32_t crc = 0xffffffffU;
  for (const char c : bytes) {
    crc ^= static_cast<std::uint8_t>(c);
    for (int bit = 0; bit < 8; ++bit) {
      crc = crc >> 1 ^ (crc & 1 ? 0x82f63b78U : 0U);
    }
  }
  return std::rotr(~crc, 15) + 0xa282ead8U;
}

std::vector<Event> read_events(const std::filesystem::path& path) {
  const std::string bytes = read_file(path);
  std::vector<Event> events;
  for (Reader reader(bytes); !reader.done();) {
    const std::string_view length = reader.take(8);
    EXPECT_EQ(reader.fixed<std::uint32_t>(), slow_masked_crc(length));
    std::uint64_t size = 0;
    std::memcpy(&size, length.data(), 8);
    const std::string_view data = reader.take(size);
    EXPECT_EQ(reader.fixed<std::uint32_t>(), slow_masked_crc(data));
    events.push_back(parse_event(data));
  }
  return events;
}

TEST(TensorBoardTest, MaskedCrcIsThatOfTheFormat) {
  EXPECT_EQ(internal::masked_crc32c("123456789"), std::rotr(0xe3069283U, 15) + 0xa282ead8U);
  EXPECT_NE(internal::masked_crc32c("123456788"), internal::masked_crc32c("123456789"));
}

TEST(TensorBoardTest, EventsCanBeReadBack) {
  const test::TemporaryFolder folder;
  TensorBoardWriter writer(folder / "tb");
  writer.write(1, std::vector<Scalar>{{"train/loss", 2.5}, {"learning_rate/adam", 3e-4}});
  writer.write(300, std::vector<Scalar>{{"train/loss", -0.125}});
  const std::vector<Event> events = read_events(writer.path());
  ASSERT_EQ(events.size(), 3U);
  EXPECT_EQ(events[0].file_version, "brain.Event:2");
  EXPECT_GT(events[0].wall_time, 1.6e9);
  EXPECT_EQ(events[1].step, 1U);
  EXPECT_EQ(events[1].scalars, (std::vector<std::pair<std::string, float>>{
                                   {"train/loss", 2.5F}, {"learning_rate/adam", 3e-4F}}));
  EXPECT_EQ(events[2].step, 300U);
  EXPECT_EQ(events[2].scalars.at(0).second, -0.125F);
  EXPECT_FALSE(events[1].session_status.has_value());
  EXPECT_TRUE(writer.path().filename().string().starts_with("events.out.tfevents."));
}

TEST(TensorBoardTest, ResumedRunMarksLaterEventsAsStale) {
  const test::TemporaryFolder folder;
  const TensorBoardWriter first(folder.path());
  const TensorBoardWriter second(folder.path(), 120);
  EXPECT_NE(first.path(), second.path());
  EXPECT_LT(first.path().filename(), second.path().filename());
  const std::vector<Event> events = read_events(second.path());
  ASSERT_EQ(events.size(), 2U);
  EXPECT_EQ(events[1].step, 121U);
  EXPECT_EQ(events[1].session_status, std::optional<std::uint64_t>(1));
}

}  // namespace
}  // namespace needle
