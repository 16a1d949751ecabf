#include "needle/quant/weights_file.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/random.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;

const ModelConfig kConfig{.vocab_size = 40,
                          .d_model = 16,
                          .num_heads = 4,
                          .num_kv_heads = 2,
                          .num_encoder_layers = 2,
                          .num_decoder_layers = 1,
                          .d_ff = 24,
                          .no_feedforward = false,
                          .max_seq_len = 64,
                          .contrastive_dim = 6};

std::vector<float> values_of(const TensorSpec& spec, std::size_t index) {
  std::int64_t count = 1;
  for (const std::int64_t side : spec.shape) {
    count *= side;
  }
  Random random(17, index);
  std::vector<float> values(static_cast<std::size_t>(count));
  for (float& value : values) {
    value = static_cast<float>(random.normal());
  }
  return values;
}

WeightsFileWriter filled_writer(const ModelConfig& config) {
  Json header;
  header["model"] = to_json(config);
  header["provenance"] = {{"made_by", "a test"}};
  WeightsFileWriter writer(config, header);
  writer.add_tokenizer("not really a tokenizer");
  const auto specs = expected_tensors(config);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    writer.add_tensor(specs[i].name, values_of(specs[i], i),
                      i == 0 ? WeightEncoding::kInt8 : WeightEncoding::kInt4);
  }
  return writer;
}

class WeightsFileTest : public ::testing::Test {
 protected:
  WeightsFileTest() { filled_writer(kConfig).write(path_); }

  std::string message_of(const std::string& bytes, const WeightsFileOptions& options = {}) {
    write_quickly(folder_ / "changed.needle", bytes);
    try {
      const WeightsFile file(folder_ / "changed.needle", options);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "";
  }
  // Without the fsync that would make thousands of variants take a minute.
  static void write_quickly(const std::filesystem::path& path, const std::string& bytes) {
    std::ofstream(path, std::ios::binary).write(bytes.data(), std::ssize(bytes));
  }
  // The same bytes with the header's and the table's checksums put right: a hostile file.
  static std::string reseal(std::string bytes) {
    std::uint32_t count = 0;
    std::memcpy(&count, bytes.data() + 12, 4);
    if (bytes.size() < 64 + std::size_t{count} * 128) {
      return bytes;
    }
    const auto all = std::as_bytes(std::span(bytes));
    const std::uint32_t table = crc32c(all.subspan(64, std::size_t{count} * 128));
    std::memcpy(bytes.data() + 24, &table, 4);
    const std::uint32_t header = crc32c(std::as_bytes(std::span(bytes)).first(60));
    std::memcpy(bytes.data() + 60, &header, 4);
    return bytes;
  }

  test::TemporaryFolder folder_;
  std::filesystem::path path_ = folder_ / "model.needle";
};

TEST_F(WeightsFileTest, RoundTripsConfigTokenizerAndTensors) {
  const WeightsFile file(path_);
  EXPECT_EQ(file.model_config(), kConfig);
  EXPECT_EQ(file.config().at("provenance").at("made_by"), "a test");
  EXPECT_EQ(file.tokenizer_model(), "not really a tokenizer");
  const auto specs = expected_tensors(kConfig);
  EXPECT_EQ(file.sections().size(), specs.size() + 2);
  for (std::size_t i = 0; i < specs.size(); ++i) {
    const auto values = values_of(specs[i], i);
    if (!specs[i].is_matrix()) {
      const auto stored = file.vector(specs[i].name);
      EXPECT_TRUE(std::ranges::equal(stored, values)) << specs[i].name;
      continue;
    }
    const MatrixView matrix = file.matrix(specs[i].name);
    EXPECT_EQ(reinterpret_cast<std::uintptr_t>(matrix.bytes.data()) % 64, 0u);
    const auto packed = pack_matrix(matrix.encoding, values, matrix.rows, matrix.cols);
    EXPECT_TRUE(std::ranges::equal(matrix.bytes, packed)) << specs[i].name;
  }
}

TEST_F(WeightsFileTest, AnotherConfigLeavesTheRestAsItIs) {
  const WeightsFile before(path_);
  Json config = before.config();
  config["calibration"] = {{"data", "rows.jsonl"}};
  write_with_config(before, config, path_);  // in place
  const WeightsFile after(path_);
  EXPECT_EQ(after.config(), config);
  EXPECT_NE(after.config(), before.config()) << "the old map stays readable";
  ASSERT_EQ(after.sections().size(), before.sections().size());
  for (std::size_t i = 1; i < after.sections().size(); ++i) {
    EXPECT_EQ(after.sections()[i].name, before.sections()[i].name);
    EXPECT_TRUE(
        std::ranges::equal(after.bytes(after.sections()[i]), before.bytes(before.sections()[i])));
  }
  config["model"]["d_model"] = 32;
  EXPECT_THROW(write_with_config(before, config, folder_ / "other.needle"), Error);
}

TEST_F(WeightsFileTest, ReleasedShapeFitsFourteenAndAHalfMegabytes) {
  const ModelConfig released;
  std::uint64_t bytes = 64 + 128 * 2;
  for (const TensorSpec& spec : expected_tensors(released)) {
    std::uint64_t size = 4;
    if (spec.is_matrix()) {
      size = packed_size(WeightEncoding::kInt4, spec.shape[0], spec.shape[1]);
    } else if (!spec.shape.empty()) {
      size = 4 * static_cast<std::uint64_t>(spec.shape[0]);
    }
    bytes += 128 + (size + 63) / 64 * 64;
  }
  constexpr std::uint64_t kTokenizerAndConfig = 180'000;  // 8192 pieces measure 132,000
  EXPECT_LE(bytes + kTokenizerAndConfig, 14'500'000u) << bytes;
  EXPECT_GT(bytes, 14'000'000u);  // the count above misses nothing
}

TEST_F(WeightsFileTest, EveryFlippedBitIsNoticed) {
  const std::string good = read_file(path_);
  for (std::size_t i = 0; i < good.size(); i += i < 4096 ? 1 : 37) {
    std::string bad = good;
    bad[i] = static_cast<char>(bad[i] ^ (1 << (i % 8)));
    EXPECT_NE(message_of(bad), "") << "byte " << i;
  }
  EXPECT_EQ(message_of(good), "");
}

TEST_F(WeightsFileTest, EveryTruncationIsNoticed) {
  const std::string good = read_file(path_);
  for (std::size_t size = 0; size < good.size(); size += size < 300 ? 1 : 211) {
    EXPECT_NE(message_of(good.substr(0, size)), "") << size;
  }
  EXPECT_NE(message_of(good + '\0'), "");
}

// Random damage with matching checksums: the reader may accept it (a changed weight) or refuse it,
// but never reads outside the file. Meant for the sanitizers.
TEST_F(WeightsFileTest, HostileFilesAreReadSafely) {
  const std::string good = read_file(path_);
  std::uint32_t count = 0;
  std::memcpy(&count, good.data() + 12, 4);
  Random random(23);
  int refused = 0;
  for (int round = 0; round < 600; ++round) {
    std::string bad = good;
    const std::uint32_t edits = 1 + random.below(3);
    for (std::uint32_t i = 0; i < edits; ++i) {
      const std::size_t place = 8 + random.below(56 + count * 128);
      bad[place] = static_cast<char>(random.below(4) == 0 ? 0xff : random.below(256));
    }
    bad = reseal(bad);
    write_quickly(folder_ / "hostile.needle", bad);
    try {
      const WeightsFile file(folder_ / "hostile.needle", {.verify_checksums = false});
      for (const TensorSpec& spec : expected_tensors(file.model_config())) {
        if (spec.is_matrix()) {
          unpack_matrix(file.matrix(spec.name));
        } else {
          file.vector(spec.name);
        }
      }
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 300);
}

TEST_F(WeightsFileTest, MessagesNameTheFileAndTheProblem) {
  const std::string good = read_file(path_);
  EXPECT_THAT(message_of("PK\x03\x04 something else entirely"), HasSubstr("not a weights file"));
  EXPECT_THAT(message_of("hello"), HasSubstr("too few"));
  EXPECT_THAT(message_of(good.substr(0, good.size() - 5)), HasSubstr("cut or changed"));
  std::string newer = good;
  newer[8] = 2;
  EXPECT_THAT(message_of(newer), HasSubstr("format version 2, this program reads version 1"));
  std::string damaged = good;
  damaged[good.size() - 1] ^= 1;
  EXPECT_THAT(message_of(damaged), HasSubstr("log_temp is damaged"));
  EXPECT_EQ(message_of(damaged, {.verify_checksums = false}), "");
  EXPECT_THROW(WeightsFile(folder_ / "absent.needle"), FileError);
}

TEST_F(WeightsFileTest, ConfigThatDoesNotMatchTheTensorsIsRefused) {
  std::string bad = read_file(path_);
  const auto replace = [&bad](std::string_view from, std::string_view to) {
    bad.replace(bad.find(from), from.size(), to);
  };
  replace("\"vocab_size\":40", "\"vocab_size\":48");
  EXPECT_THAT(message_of(bad, {.verify_checksums = false}),
              HasSubstr("expected a tensor embedding.weight of shape [48, 16], the file has int8 "
                        "[40, 16]"));
  replace("\"num_heads\":4", "\"num_heads\":3");
  EXPECT_NE(message_of(bad, {.verify_checksums = false}), "");
}

TEST_F(WeightsFileTest, WriterRefusesWhatAModelLacks) {
  Json header;
  header["model"] = to_json(kConfig);
  WeightsFileWriter writer(kConfig, header);
  EXPECT_THROW(writer.add_tensor("decoder.layers.7.gate", {}, WeightEncoding::kF32), Error);
  EXPECT_THROW(writer.add_tensor("log_temp", std::vector<float>(2), WeightEncoding::kF32), Error);
  EXPECT_THROW(writer.write(folder_ / "incomplete.needle"), Error);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "incomplete.needle"));
  header["model"]["vocab_size"] = 41;
  EXPECT_THROW(WeightsFileWriter(kConfig, header), Error);
}

TEST_F(WeightsFileTest, SecondReaderInPythonAgrees) {
  if (std::system("python3 -c pass >/dev/null 2>&1") != 0) {
    GTEST_SKIP() << "python3 is not installed";
  }
  const std::filesystem::path script = test::source_dir() / "scripts/read_weights_file.py";
  const std::string name = "encoder.layers.1.self_attn.attention.k_proj.weight";
  const std::string out = (folder_ / "values.txt").string();
  const auto run = [&](const std::filesystem::path& file) {
    return std::system(("python3 '" + script.string() + "' '" + file.string() + "' --values " +
                        name + " >'" + out + "' 2>&1")
                           .c_str());
  };
  ASSERT_EQ(run(path_), 0) << read_file(out);
  const WeightsFile file(path_);
  std::string expected;
  for (const float weight : unpack_matrix(file.matrix(name))) {
    expected += format("{:.9g}\n", weight);
  }
  EXPECT_EQ(read_file(out), expected);

  std::string damaged = read_file(path_);
  damaged[damaged.size() / 2] ^= 4;
  write_file_atomic(folder_ / "damaged.needle", damaged);
  EXPECT_NE(run(folder_ / "damaged.needle"), 0);
}

}  // namespace
}  // namespace needle
