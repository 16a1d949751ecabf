// Ids that every tokenizer of this project has (specification, section 3).
#pragma once

#include <cstdint>
#include <string_view>

namespace needle {

using TokenId = std::int32_t;

inline constexpr TokenId kPadId = 0;
inline constexpr TokenId kEosId = 1;
inline constexpr TokenId kBosId = 2;
inline constexpr TokenId kUnkId = 3;
inline constexpr TokenId kToolCallId = 4;  // begins every answer
inline constexpr TokenId kToolsId = 5;     // between query and tools
inline constexpr std::string_view kToolCallPiece = "<tool_call>";
inline constexpr std::string_view kToolsPiece = "<tools>";

}  // namespace needle
