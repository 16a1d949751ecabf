#include "needle/eval/stratify.h"

#include <algorithm>
#include <map>

#include "needle/core/random.h"

namespace needle {

Bucket bucket_of(const EvalCase& eval_case) {
  const std::size_t calls = count_items(eval_case.answers);
  return {
      .pool = calls == 0 ? CallPool::kNone : (calls == 1 ? CallPool::kSingle : CallPool::kMulti),
      .tools = std::min(count_items(eval_case.tools), kMostToolsBucket)};
}

std::vector<std::size_t> stratified_sample(std::span<const EvalCase> cases, std::size_t per_bucket,
                                           std::uint64_t seed) {
  std::map<Bucket, std::vector<std::size_t>> buckets;
  for (std::size_t i = 0; i < cases.size(); ++i) {
    buckets[bucket_of(cases[i])].push_back(i);
  }
  Random random(derive_seed(seed, "stratified sample"));
  std::vector<std::size_t> chosen;
  for (auto& [bucket, indices] : buckets) {
    random.shuffle(std::span(indices));
    indices.resize(std::min(indices.size(), per_bucket));
    chosen.insert(chosen.end(), indices.begin(), indices.end());
  }
  std::sort(chosen.begin(), chosen.end());
  return chosen;
}

}  // namespace needle
