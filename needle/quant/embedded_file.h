// A weights file as a part of a program: C source that any compiler takes, or an ELF object that a
// linker takes at once. For firmware, and for programs of one file.
#pragma once

#include <filesystem>
#include <string>
#include <string_view>

#include "needle/core/enum_names.h"

namespace needle {

enum class ObjectMachine { kX86_64, kAarch64, kArm, kRiscv64 };
inline constexpr EnumNames<ObjectMachine, 4> kObjectMachineNames{
    {{{ObjectMachine::kX86_64, "x86-64"},
      {ObjectMachine::kAarch64, "aarch64"},
      {ObjectMachine::kArm, "arm"},
      {ObjectMachine::kRiscv64, "riscv64"}}}};

// "model-v2.needle" -> "model_v2": a name that C allows.
std::string symbol_of(const std::filesystem::path& file);

// Both define, read-only, the bytes at a multiple of 64 and their number:
//   const unsigned long long NAME[]; const unsigned long long NAME_size;  // in bytes
// and are written atomically, with declarations for C and C++ in `path` with the extension .h.
// `file` must be a weights file, which is checked. The C source stores 8 bytes a number, so that it
// compiles in seconds, and is for little-endian machines, as the file is. Throw FileError,
// FormatError, ConfigError on a name that C does not allow.
void write_c_source(const std::filesystem::path& file, const std::filesystem::path& path,
                    std::string_view name);
void write_object(const std::filesystem::path& file, const std::filesystem::path& path,
                  std::string_view name, ObjectMachine machine);

}  // namespace needle
