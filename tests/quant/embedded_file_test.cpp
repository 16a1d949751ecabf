#include "needle/quant/embedded_file.h"

#include <cstdlib>
#include <filesystem>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/error.h"
#include "needle/core/fields.h"
#include "needle/core/file.h"
#include "needle/quant/weights_file.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::HasSubstr;

class EmbeddedFileTest : public ::testing::Test {
 protected:
  void SetUp() override {
    const ModelConfig config{.vocab_size = 20,
                             .d_model = 16,
                             .num_heads = 2,
                             .num_kv_heads = 1,
                             .num_encoder_layers = 1,
                             .num_decoder_layers = 1,
                             .contrastive_dim = 5};
    Json header;
    header["model"] = to_json(config);
    WeightsFileWriter writer(config, header);
    for (const TensorSpec& spec : expected_tensors(config)) {
      std::size_t count = 1;
      for (const std::int64_t side : spec.shape) {
        count *= static_cast<std::size_t>(side);
      }
      writer.add_tensor(spec.name, std::vector<float>(count, 0.25f), WeightEncoding::kInt4);
    }
    writer.write(file_);
  }

  // Compiles `model` with a program that writes it to stdout; what it wrote.
  std::string through_a_program(const std::string& model, bool needs_c) {
    write_file_atomic(folder_ / "main.c",
                      "#include <stdint.h>\n#include <stdio.h>\n#include \"model.h\"\n"
                      "int main(void) {\n"
                      "  if ((uintptr_t)model % 64 != 0) return 3;\n"
                      "  return fwrite(model, 1, model_size, stdout) == model_size ? 0 : 1;\n}\n");
    const std::string at = folder_.path().string();
    const std::string command = "cd " + at + " && cc -Wall -Werror " +
                                (needs_c ? "-std=c99 -Wpedantic " : "") + "-o program main.c " +
                                model + " && ./program > copy.needle";
    EXPECT_EQ(std::system(command.c_str()), 0) << command;
    return read_file(folder_ / "copy.needle");
  }

  test::TemporaryFolder folder_;
  std::filesystem::path file_ = folder_ / "file.needle";
};

TEST_F(EmbeddedFileTest, CSourceHoldsTheFileAligned) {
  write_c_source(file_, folder_ / "model.c", "model");
  EXPECT_EQ(through_a_program("model.c", true), read_file(file_));
}

#if defined(__x86_64__) || defined(__aarch64__)
TEST_F(EmbeddedFileTest, ObjectHoldsTheFileAligned) {
#if defined(__x86_64__)
  write_object(file_, folder_ / "model.o", "model", ObjectMachine::kX86_64);
#else
  write_object(file_, folder_ / "model.o", "model", ObjectMachine::kAarch64);
#endif
  EXPECT_EQ(through_a_program("model.o", false), read_file(file_));
}
#endif

TEST_F(EmbeddedFileTest, ObjectsOfOtherMachinesAreElf) {
  for (const auto& [machine, name] : kObjectMachineNames.entries) {
    write_object(file_, folder_ / "model.o", "model", machine);
    const std::string bytes = read_file(folder_ / "model.o");
    EXPECT_EQ(bytes.substr(0, 4),
              "\x7F"
              "ELF")
        << name;
    EXPECT_EQ(bytes[4], machine == ObjectMachine::kArm ? 1 : 2) << name;
    EXPECT_NE(bytes.find(read_file(file_)), std::string::npos) << name;
    const std::string listed = (folder_ / "listed.txt").string();
    const std::string command =
        "command -v readelf > /dev/null || exit 0; LC_ALL=C readelf -W -S -s " +
        (folder_ / "model.o").string() + " > " + listed + " 2>&1";
    ASSERT_EQ(std::system(command.c_str()), 0);
    if (!std::filesystem::exists(listed)) {
      continue;
    }
    const std::string text = read_file(listed);
    EXPECT_THAT(text, HasSubstr(".rodata")) << name;
    EXPECT_THAT(text, HasSubstr("GLOBAL DEFAULT    1 model_size")) << name;
    EXPECT_THAT(text, HasSubstr(std::to_string(std::filesystem::file_size(file_)))) << name;
    EXPECT_EQ(text.find("Warning"), std::string::npos) << text;
    EXPECT_EQ(text.find("Error"), std::string::npos) << text;
  }
}

TEST_F(EmbeddedFileTest, NamesAreCNames) {
  EXPECT_EQ(symbol_of("a/model-v2.needle"), "model_v2");
  EXPECT_EQ(symbol_of("3.needle"), "model_3");
  EXPECT_THROW(write_c_source(file_, folder_ / "x.c", "a b"), ConfigError);
  EXPECT_THROW(write_c_source(file_, folder_ / "x.c", ""), ConfigError);
  EXPECT_THROW(write_object(file_, folder_ / "x.o", "1a", ObjectMachine::kArm), ConfigError);
  write_file_atomic(folder_ / "text", "no weights file at all");
  EXPECT_THROW(write_c_source(folder_ / "text", folder_ / "x.c", "a"), FormatError);
  EXPECT_FALSE(std::filesystem::exists(folder_ / "x.c"));
}

}  // namespace
}  // namespace needle
