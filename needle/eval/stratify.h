// Examples grouped by what makes them hard: how many calls they need and how many tools are on
// offer.
#pragma once

#include <compare>
#include <cstddef>
#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "needle/core/enum_names.h"
#include "needle/eval/eval_case.h"

namespace needle {

enum class CallPool { kNone, kSingle, kMulti };  // calls in the reference: 0, 1, more
inline constexpr EnumNames<CallPool, 3> kCallPoolNames{
    {{{CallPool::kNone, "none"}, {CallPool::kSingle, "single"}, {CallPool::kMulti, "multi"}}}};

inline constexpr std::size_t kMostToolsBucket = 10;  // this many tools or more

struct Bucket {
  CallPool pool = CallPool::kNone;
  std::size_t tools = 0;  // 0..kMostToolsBucket
  auto operator<=>(const Bucket&) const = default;
};
Bucket bucket_of(const EvalCase& eval_case);

// Indices of at most `per_bucket` cases of every bucket, ascending: a small evaluation that sees
// every kind. Which ones follows from the seed alone.
std::vector<std::size_t> stratified_sample(std::span<const EvalCase> cases, std::size_t per_bucket,
                                           std::uint64_t seed);

}  // namespace needle
