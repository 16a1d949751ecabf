// Text formatting with fmt's syntax ("{}", "{:.3f}", "{:>8}") behind a face without fmt in it.
//
// LibTorch's include folder carries one version of fmt and Debian's spdlog wants another.
// format.cpp is the only source that includes an fmt header, so no translation unit ever sees two.
#pragma once

#include <array>
#include <concepts>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <variant>

namespace needle {

// One argument, type-erased. Text is viewed, not copied: it must outlive the call.
class FormatArg {
 public:
  using Value =
      std::variant<std::int64_t, std::uint64_t, double, bool, char, std::string_view, std::string>;

  FormatArg(bool value) : value_(value) {}    // NOLINT(google-explicit-constructor)
  FormatArg(char value) : value_(value) {}    // NOLINT(google-explicit-constructor)
  FormatArg(double value) : value_(value) {}  // NOLINT(google-explicit-constructor)
  FormatArg(float value)
      : value_(static_cast<double>(value)) {}  // NOLINT(google-explicit-constructor)
  FormatArg(const char* value)
      : value_(std::string_view(value)) {}              // NOLINT(google-explicit-constructor)
  FormatArg(std::string_view value) : value_(value) {}  // NOLINT(google-explicit-constructor)
  FormatArg(const std::string& value)
      : value_(std::string_view(value)) {}  // NOLINT(google-explicit-constructor)
  FormatArg(const std::filesystem::path& value)
      : value_(value.string()) {}  // NOLINT(google-explicit-constructor)
  template <std::signed_integral T>
  FormatArg(T value)
      : value_(static_cast<std::int64_t>(value)) {}  // NOLINT(google-explicit-constructor)
  template <std::unsigned_integral T>
  FormatArg(T value)
      : value_(static_cast<std::uint64_t>(value)) {}  // NOLINT(google-explicit-constructor)

  const Value& value() const { return value_; }

 private:
  Value value_;
};

// Never throws on a wrong pattern: the result then carries the pattern and the reason, because this
// builds error messages. Thread-safe.
std::string format_args(std::string_view pattern, std::span<const FormatArg> args);

template <typename... Args>
std::string format(std::string_view pattern, const Args&... args) {
  const std::array<FormatArg, sizeof...(Args)> erased{FormatArg(args)...};
  return format_args(pattern, erased);
}

}  // namespace needle
