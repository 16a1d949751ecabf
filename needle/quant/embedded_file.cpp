#include "needle/quant/embedded_file.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cctype>
#include <cstdint>
#include <cstring>
#include <vector>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/quant/weights_file.h"

namespace needle {
namespace {

static_assert(std::endian::native == std::endian::little, "tables below are copied as they lie");

constexpr std::uint64_t kAlignment = 64;

bool is_letter(char c) { return std::isalpha(static_cast<unsigned char>(c)) != 0 || c == '_'; }
bool is_digit(char c) { return c >= '0' && c <= '9'; }

void check_name(std::string_view name) {
  const bool good = !name.empty() && is_letter(name.front()) &&
                    std::ranges::all_of(name, [](char c) { return is_letter(c) || is_digit(c); });
  if (!good) {
    throw ConfigError(format("'{}' is no name in C; expected letters, digits and _", name));
  }
}

void write_header(const std::filesystem::path& path, std::string_view name) {
  const std::string guard = format("NEEDLE_EMBEDDED_{}_H_", name);
  write_file_atomic(
      std::filesystem::path(path).replace_extension(".h"),
      format(
          "/* Written by needle-export embed. needle_model_load_memory({0}, {0}_size, ...) loads "
          "it where it lies. */\n#ifndef {1}\n#define {1}\n\n#ifdef __cplusplus\nextern \"C\" "
          "{{\n#endif\n\nextern const unsigned long long {0}[];\nextern const unsigned long long "
          "{0}_size;\n\n#ifdef __cplusplus\n}}\n#endif\n\n#endif\n",
          name, guard));
}

// The two ELF classes' records (System V ABI, chapter 4), as far as an object with one section of
// data needs them.
template <typename Address>
struct ElfHeader {
  std::array<std::uint8_t, 16> ident;
  std::uint16_t type;
  std::uint16_t machine;
  std::uint32_t version;
  Address entry;
  Address program_headers;
  Address section_headers;
  std::uint32_t flags;
  std::uint16_t header_size;
  std::uint16_t program_header_size;
  std::uint16_t program_header_count;
  std::uint16_t section_header_size;
  std::uint16_t section_count;
  std::uint16_t names_section;
};
static_assert(sizeof(ElfHeader<std::uint64_t>) == 64 && sizeof(ElfHeader<std::uint32_t>) == 52);

template <typename Address>
struct ElfSection {
  std::uint32_t name;
  std::uint32_t type;
  Address flags;
  Address address;
  Address offset;
  Address size;
  std::uint32_t link;
  std::uint32_t info;
  Address alignment;
  Address entry_size;
};
static_assert(sizeof(ElfSection<std::uint64_t>) == 64 && sizeof(ElfSection<std::uint32_t>) == 40);

struct ElfSymbol64 {
  std::uint32_t name;
  std::uint8_t info;
  std::uint8_t other;
  std::uint16_t section;
  std::uint64_t value;
  std::uint64_t size;
};
struct ElfSymbol32 {
  std::uint32_t name;
  std::uint32_t value;
  std::uint32_t size;
  std::uint8_t info;
  std::uint8_t other;
  std::uint16_t section;
};
static_assert(sizeof(ElfSymbol64) == 24 && sizeof(ElfSymbol32) == 16);

struct MachineCode {
  std::uint16_t machine;
  std::uint32_t flags;
};
MachineCode code_of(ObjectMachine machine) {
  switch (machine) {
    case ObjectMachine::kX86_64:
      return {62, 0};
    case ObjectMachine::kAarch64:
      return {183, 0};
    case ObjectMachine::kArm:
      return {40, 0x05000000};  // EABI 5; data fits either float ABI
    case ObjectMachine::kRiscv64:
      return {243, 0x5};  // compressed instructions, doubles in registers: what Linux uses
  }
  return {};
}

template <typename T>
std::span<const std::byte> bytes_of(const T& value) {
  return std::as_bytes(std::span(&value, 1));
}

// .rodata with the bytes and, behind them at a multiple of 8, their number.
template <typename Address, typename Symbol>
void write_elf(AtomicFileWriter& out, std::span<const std::byte> bytes, std::string_view name,
               MachineCode code) {
  constexpr bool k64 = sizeof(Address) == 8;
  static constexpr std::string_view kNames("\0.rodata\0.symtab\0.strtab\0.note.GNU-stack\0", 41);
  const std::string strings =
      std::string(1, '\0') + std::string(name) + '\0' + std::string(name) + "_size" + '\0';
  const std::uint64_t size_at = (bytes.size() + 7) / 8 * 8;
  const std::uint64_t size = bytes.size();
  ElfHeader<Address> header{
      .ident = {0x7F, 'E', 'L', 'F', k64 ? std::uint8_t{2} : std::uint8_t{1}, 1, 1},
      .type = 1,
      .machine = code.machine,
      .version = 1,
      .flags = code.flags,
      .header_size = sizeof(ElfHeader<Address>),
      .section_header_size = sizeof(ElfSection<Address>),
      .section_count = 5,
      .names_section = 3};
  std::array<ElfSection<Address>, 5> sections{};
  const std::uint64_t data_at = kAlignment;  // behind the header, which is shorter
  sections[1] = {.name = 1,
                 .type = 1,
                 .flags = 2,
                 .offset = static_cast<Address>(data_at),
                 .size = static_cast<Address>(size_at + 8),
                 .alignment = kAlignment};
  const std::uint64_t symbols_at = data_at + size_at + 8;
  sections[2] = {.name = 9,
                 .type = 2,
                 .offset = static_cast<Address>(symbols_at),
                 .size = 3 * sizeof(Symbol),
                 .link = 3,
                 .info = 1,
                 .alignment = 8,
                 .entry_size = sizeof(Symbol)};
  const std::uint64_t strings_at = symbols_at + 3 * sizeof(Symbol);
  sections[3] = {.name = 17,
                 .type = 3,
                 .offset = static_cast<Address>(strings_at),
                 .size = static_cast<Address>(strings.size() + kNames.size()),
                 .alignment = 1};
  // The names of sections lie behind those of symbols.
  for (std::size_t i = 1; i < 4; ++i) {
    sections[i].name += static_cast<std::uint32_t>(strings.size());
  }
  sections[4] = {
      .name = static_cast<std::uint32_t>(strings.size() + 25), .type = 1, .alignment = 1};
  header.section_headers =
      static_cast<Address>((strings_at + strings.size() + kNames.size() + 7) / 8 * 8);
  const auto symbol = [](std::uint32_t at, std::uint64_t value, std::uint64_t bytes_long) {
    Symbol made{};
    made.name = at;
    made.info = 1 << 4 | 1;  // global, an object
    made.section = 1;
    made.value = static_cast<Address>(value);
    made.size = static_cast<Address>(bytes_long);
    return made;
  };
  const std::array<Symbol, 3> symbols{
      Symbol{}, symbol(1, 0, size),
      symbol(static_cast<std::uint32_t>(2 + name.size()), size_at, 8)};

  out.write(bytes_of(header));
  out.pad_to(kAlignment);
  out.write(bytes);
  out.pad_to(8);
  out.write(bytes_of(size));
  out.write(bytes_of(symbols));
  out.write(strings);
  out.write(kNames);
  out.pad_to(8);
  NEEDLE_CHECK(out.offset() == header.section_headers, "an object of another size than planned");
  out.write(bytes_of(sections));
}

}  // namespace

std::string symbol_of(const std::filesystem::path& file) {
  std::string name = file.stem().string();
  std::ranges::replace_if(
      name, [](char c) { return !is_letter(c) && !is_digit(c); }, '_');
  return name.empty() || is_digit(name.front()) ? "model_" + name : name;
}

void write_c_source(const std::filesystem::path& file, const std::filesystem::path& path,
                    std::string_view name) {
  check_name(name);
  const WeightsFile checked(file);
  const MappedFile mapped(file);
  AtomicFileWriter out(path);
  out.write(
      format("/* Written by needle-export embed: {} bytes of a weights file, 8 in a number, for "
             "little-endian machines. */\n#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != "
             "__ORDER_LITTLE_ENDIAN__\n#error \"a weights file is little-endian\"\n#endif\n"
             "#if defined(__GNUC__)\n__attribute__((aligned(64)))\n#elif defined(_MSC_VER)\n"
             "__declspec(align(64))\n#endif\nconst unsigned long long {}[] = {{\n",
             mapped.bytes().size(), name));
  constexpr std::string_view kDigits = "0123456789abcdef";
  std::string line;
  for (std::size_t at = 0; at < mapped.bytes().size(); at += 8) {
    std::uint64_t word = 0;
    std::memcpy(&word, mapped.bytes().data() + at,
                std::min<std::size_t>(8, mapped.bytes().size() - at));
    line += "0x";
    for (int shift = 60; shift >= 0; shift -= 4) {
      line.push_back(kDigits[word >> shift & 15]);
    }
    line += at % 64 == 56 ? ",\n" : ",";
    if (line.size() > 4096) {
      out.write(line);
      line.clear();
    }
  }
  out.write(line);
  out.write(
      format("}};\nconst unsigned long long {}_size = {}ULL;\n", name, mapped.bytes().size()));
  out.commit();
  write_header(path, name);
}

void write_object(const std::filesystem::path& file, const std::filesystem::path& path,
                  std::string_view name, ObjectMachine machine) {
  check_name(name);
  const WeightsFile checked(file);
  const MappedFile mapped(file);
  AtomicFileWriter out(path);
  if (machine == ObjectMachine::kArm) {
    write_elf<std::uint32_t, ElfSymbol32>(out, mapped.bytes(), name, code_of(machine));
  } else {
    write_elf<std::uint64_t, ElfSymbol64>(out, mapped.bytes(), name, code_of(machine));
  }
  out.commit();
  write_header(path, name);
}

}  // namespace needle
