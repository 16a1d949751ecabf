#include "needle/core/pickle.h"

#include <cstring>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/core/random.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using std::string_literals::operator""s;  // for bytes with zeros among them

PickleValue read(std::string_view bytes) {
  return read_pickle(std::as_bytes(std::span(bytes.data(), bytes.size())));
}

std::string refusal(std::string_view bytes) {
  try {
    read(bytes);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

template <typename T>
T value_of(std::string_view bytes) {
  return std::get<T>(read(bytes).value);
}

bool same(const PickleValue& a, const PickleValue& b) {
  if (a.value.index() != b.value.index()) {
    return false;
  }
  if (const auto* list = std::get_if<PickleValue::List>(&a.value)) {
    return std::equal(list->begin(), list->end(), std::get<PickleValue::List>(b.value).begin(),
                      std::get<PickleValue::List>(b.value).end(), same);
  }
  if (const auto* dict = std::get_if<PickleValue::Dict>(&a.value)) {
    const auto& other = std::get<PickleValue::Dict>(b.value);
    return std::equal(
        dict->begin(), dict->end(), other.begin(), other.end(),
        [](const auto& x, const auto& y) { return x.key == y.key && same(x.value, y.value); });
  }
  if (const auto* array = std::get_if<PickleArray>(&a.value)) {
    const auto& other = std::get<PickleArray>(b.value);
    return array->dtype == other.dtype && array->shape == other.shape &&
           array->bytes == other.bytes;
  }
  if (const auto* real = std::get_if<double>(&a.value)) {
    const double other = std::get<double>(b.value);
    return std::memcmp(real, &other, sizeof other) == 0;
  }
  if (const auto* text = std::get_if<std::string>(&a.value)) {
    return *text == std::get<std::string>(b.value);
  }
  if (const auto* integer = std::get_if<std::int64_t>(&a.value)) {
    return *integer == std::get<std::int64_t>(b.value);
  }
  return true;
}

PickleValue sample() {
  PickleValue::List integers;
  for (const std::int64_t value :
       {std::int64_t{0}, std::int64_t{255}, std::int64_t{256}, std::int64_t{65535},
        std::int64_t{65536}, std::int64_t{-1}, std::int64_t{2147483647}, std::int64_t{2147483648},
        std::int64_t{-2147483648}, std::int64_t{-2147483649}, INT64_MAX, INT64_MIN}) {
    integers.emplace_back().value = value;
  }
  PickleArray array{.dtype = Dtype::kF16,
                    .shape = {2, 3},
                    .bytes = "\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0c"};
  PickleArray scalar{.dtype = Dtype::kF64, .shape = {}, .bytes = std::string(8, '\x3f')};
  PickleArray empty{.dtype = Dtype::kF32, .shape = {0, 5}, .bytes = ""};
  PickleArray large{.dtype = Dtype::kF32, .shape = {300}, .bytes = std::string(1200, 'x')};
  return {PickleValue::Dict{{"none", {std::monostate()}},
                            {"true", {true}},
                            {"false", {false}},
                            {"integers", {integers}},
                            {"reals", {PickleValue::List{{0.1}, {-0.0}, {1e300}}}},
                            {"text é", {std::string("a\0b\n", 4)}},
                            {"long text", {std::string(1000, 'y')}},
                            {"nothing", {PickleValue::List{}}},
                            {"dict", {PickleValue::Dict{{"x", {array}}, {"", {scalar}}}}},
                            {"empty", {empty}},
                            {"large", {large}}}};
}

TEST(PickleTest, ReadsWhatItWrites) {
  const std::string bytes = write_pickle(sample());
  EXPECT_TRUE(same(read(bytes), sample()));
  EXPECT_FALSE(same(read(write_pickle({std::int64_t{1}})), sample()));
  const test::TemporaryFolder folder;
  write_file_atomic(folder / "a.pkl", bytes);
  EXPECT_TRUE(same(read_pickle_file(folder / "a.pkl"), sample()));
}

TEST(PickleTest, FindLooksIntoDictsAlone) {
  const PickleValue value = sample();
  ASSERT_NE(value.find("dict"), nullptr);
  EXPECT_NE(value.find("dict")->find("x"), nullptr);
  EXPECT_EQ(value.find("absent"), nullptr);
  EXPECT_EQ(value.find("integers")->find("x"), nullptr);
}

// Bytes as Python 3.11 writes them: pickle.dumps(value, protocol).
TEST(PickleTest, ReadsEveryProtocolOfPython) {
  EXPECT_EQ(value_of<std::int64_t>("I5\n."), 5);
  EXPECT_EQ(value_of<std::int64_t>("L1099511627779L\n."), 1099511627779);
  EXPECT_EQ(value_of<bool>("I01\n."), true);
  EXPECT_EQ(value_of<double>("F0.1\n."), 0.1);
  EXPECT_EQ(value_of<std::string>("V\xe9\\u20ac\\U0001f600\\u005c\\u000a\np0\n."),
            "\xc3\xa9\xe2\x82\xac\xf0\x9f\x98\x80\\\n");
  EXPECT_EQ(value_of<std::int64_t>("\x80\x02\x8a\x06\x03\x00\x00\x00\x00\x01."s),
            (std::int64_t{1} << 40) + 3);
  EXPECT_EQ(value_of<std::int64_t>("\x80\x02\x8a\x05\x00\x00\x00\x00\xff."s),
            -(std::int64_t{1} << 32));
  EXPECT_EQ(value_of<std::int64_t>("\x80\x02\x8a\x00."s), 0);
  EXPECT_EQ(value_of<std::int64_t>("\x80\x04J\xfe\xff\xff\xff."s), -2);
  EXPECT_EQ(value_of<double>("\x80\x04G?\xb9\x99\x99\x99\x99\x99\x9a."s), 0.1);
  EXPECT_EQ(value_of<std::string>("\x80\x04\x8c\x02\xc3\xa9\x94."s), "\xc3\xa9");
  // [1, (2, 'a', 'a'), {}] with a memo
  const auto list = value_of<PickleValue::List>(
      "\x80\x04](K\x01K\x02\x8c\x01"
      "a\x94h\x00\x87}e."s);
  ASSERT_EQ(list.size(), 3u);
  EXPECT_EQ(std::get<PickleValue::List>(list[1].value).size(), 3u);
}

TEST(PickleTest, TurnsColumnMajorAndBigEndianArraysRound) {
  // _reconstruct, then state (1, (2, 3), dtype, order, data): element [i][j] is 3 i + j as a
  // big-endian half-size int.
  const auto array = [](std::string_view order, std::string_view fortran, std::string_view data) {
    std::string bytes =
        "\x80\x02"
        "cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        "C\x01"
        "b\x87R"
        "(K\x01K\x02K\x03\x86"
        "cnumpy\ndtype\nX\x02\x00\x00\x00"
        "f2\x89\x88\x87R(K\x03X\x01\x00\x00\x00"s;
    bytes += order;
    bytes += "NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"s;
    bytes += fortran;
    bytes += "C\x0c";
    bytes += data;
    return bytes + "tb.";
  };
  const std::string row_major = "\x00\x00\x01\x00\x02\x00\x03\x00\x04\x00\x05\x00"s;
  const std::string column_major = "\x00\x00\x03\x00\x01\x00\x04\x00\x02\x00\x05\x00"s;
  const std::string big_endian = "\x00\x00\x00\x01\x00\x02\x00\x03\x00\x04\x00\x05"s;
  for (const std::string& bytes : {array("<", "\x89", row_major), array("<", "\x88", column_major),
                                   array(">", "\x89", big_endian)}) {
    const auto value = value_of<PickleArray>(bytes);
    EXPECT_EQ(value.shape, (std::vector<std::int64_t>{2, 3}));
    EXPECT_EQ(value.bytes, row_major);
    EXPECT_EQ(value.view().element_count(), 6);
  }
  EXPECT_THAT(refusal(array("=", "\x89", row_major)), testing::HasSubstr("byte order"));
  EXPECT_THAT(refusal(array("<", "N", row_major)), testing::HasSubstr("memory order"));
}

TEST(PickleTest, NamesByteAndReason) {
  EXPECT_EQ(refusal("\x80\x04K\x01\x8c\x05"
                    "ab."s),
            "byte 4: 5 bytes are announced, 3 are left");
  EXPECT_THAT(refusal("cos\nsystem\n."), testing::HasSubstr("os.system"));
  EXPECT_THAT(refusal("c\x1b[31m\nx\n."),
              testing::HasSubstr("?[31m.x"));  // nothing that a terminal obeys
  EXPECT_THAT(refusal("K"), testing::StartsWith("byte 0: "));
  EXPECT_THAT(refusal("NN."), testing::HasSubstr("expected one value"));
  EXPECT_THAT(refusal("(N."), testing::HasSubstr("marks"));
  EXPECT_THAT(refusal("N.N"), testing::HasSubstr("follow"));
  EXPECT_THAT(refusal("C\x01"
                      "a."),
              testing::HasSubstr("bytes"));
  EXPECT_THAT(refusal("cnumpy\nndarray\n."), testing::HasSubstr("global name"));
  EXPECT_THAT(refusal("cnumpy\nndarray\n)R."), testing::HasSubstr("calls numpy.ndarray"));
  EXPECT_THAT(refusal("}(X\x01\x00\x00\x00"
                      "aNX\x01\x00\x00\x00"
                      "aNu."s),
              testing::HasSubstr("twice"));
  EXPECT_THAT(refusal("Vab\\q\n."), testing::HasSubstr("escape"));
  EXPECT_THAT(refusal("V\\ud800\n."), testing::HasSubstr("escape"));
  EXPECT_THAT(refusal("X\x03\x00\x00\x00\xed\xa0\x80."s),
              testing::HasSubstr("UTF-8"));  // a surrogate
  EXPECT_THAT(refusal("I99999999999999999999\n."), testing::HasSubstr("64-bit"));
  EXPECT_THAT(refusal("K\x01(a."s), testing::HasSubstr("empty"));  // below the mark
}

TEST(PickleTest, WhatUnfoldsBeyondTheFileIsRefused) {
  // One text of 10 kB, memorised, then a list of 1000 references to it: 10 MB from 12 kB.
  std::string shared = "\x80\x04(X\x10\x27\x00\x00"s + std::string(10'000, 'x') + "\x94";
  for (int i = 0; i < 1000; ++i) {
    shared += "h"s + '\0';
  }
  EXPECT_THAT(refusal(shared + "l."), testing::HasSubstr("several times"));
  // A list of 2^40 items in 20 doublings.
  std::string doubled = "\x80\x04]\x94";
  for (int i = 0; i < 40; ++i) {
    doubled += "h"s + static_cast<char>(i) + "h" + static_cast<char>(i) + "\x86\x94";
  }
  EXPECT_NE(refusal(doubled + "."), "accepted");
  // A million empty lists: more values than a checkpoint has.
  EXPECT_THAT(refusal("(" + std::string(1'000'000, ']') + "l."), testing::HasSubstr("values"));
}

TEST(PickleTest, EveryTruncationIsRefused) {
  const std::string whole = write_pickle(sample());
  for (std::size_t size = 0; size < whole.size(); ++size) {
    EXPECT_NE(refusal(whole.substr(0, size)), "accepted") << size;
  }
}

// Changed bytes lead to a value or a FormatError, nothing else; the sanitizers watch.
TEST(PickleTest, ChangedBytesAreReadOrRefused) {
  const std::string whole = write_pickle(sample());
  Random random(11);
  std::size_t refused = 0;
  constexpr std::size_t kTrials = 20'000;
  for (std::size_t trial = 0; trial < kTrials; ++trial) {
    std::string changed = whole;
    for (std::uint32_t i = random.below(4) + 1; i > 0; --i) {
      changed[random.below(static_cast<std::uint32_t>(changed.size()))] =
          static_cast<char>(random.below(256));
    }
    refused += refusal(changed) == "accepted" ? 0 : 1;
  }
  EXPECT_GT(refused, kTrials / 10);
  EXPECT_LT(refused, kTrials);
}

TEST(PickleTest, WritingChecksArrays) {
  EXPECT_THROW(write_pickle({PickleArray{.dtype = Dtype::kF16, .shape = {2}, .bytes = "abc"}}),
               Error);
  EXPECT_THROW(write_pickle({PickleArray{.dtype = Dtype::kI8, .shape = {1}, .bytes = "a"}}), Error);
  PickleValue deep{PickleValue::List{}};
  for (int i = 0; i < 150; ++i) {
    deep = {PickleValue::List{std::move(deep)}};
  }
  EXPECT_THROW(write_pickle(deep), Error);
}

}  // namespace
}  // namespace needle
