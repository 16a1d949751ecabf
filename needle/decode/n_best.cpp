#include "needle/decode/n_best.h"

#include <algorithm>
#include <limits>
#include <memory>
#include <utility>

#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::int64_t kAlternatives = 32;  // kept of a step; of a trained model's all that count

// A beginning that no answer so far has, or a whole answer.
struct Branch {
  std::vector<TokenId> ids;
  bool ended = false;
  double log_probability = 0;
};

bool less_probable(const Branch& a, const Branch& b) {
  return a.log_probability < b.log_probability;
}

class Search {
 public:
  Search(EngineSession& session, const Constraint* constraint, const NBestOptions& options)
      : session_(session), constraint_(constraint), options_(options) {}

  NBest run() {
    branches_.push_back({});
    const std::int64_t most =
        options_.max_expansions > 0 ? options_.max_expansions : 4 * options_.count;
    while (!branches_.empty() && !settled() && result_.expansions < most && !result_.cancelled) {
      std::ranges::pop_heap(branches_, less_probable);
      const Branch branch = std::move(branches_.back());
      branches_.pop_back();
      if (branch.ended) {
        add({.ids = branch.ids, .log_probability = branch.log_probability});
      } else {
        follow(branch);
      }
    }
    const bool kept_all =
        result_.answers.empty() || dropped_ <= result_.answers.back().log_probability;
    result_.exact = kept_all && !result_.cancelled && (branches_.empty() || settled());
    return std::move(result_);
  }

 private:
  bool settled() const {
    return std::ssize(result_.answers) >= options_.count &&
           branches_.front().log_probability <= result_.answers.back().log_probability;
  }

  void add(ScoredTokens answer) {
    auto& answers = result_.answers;
    const auto place = std::ranges::find_if(answers, [&](const ScoredTokens& other) {
      return other.log_probability < answer.log_probability;
    });
    answers.insert(place, std::move(answer));
    if (std::ssize(answers) > options_.count) {
      answers.pop_back();
    }
  }

  void follow(const Branch& branch) {
    rewind_to(branch.ids);
    const std::unique_ptr<Constraint> constraint = constraint_ ? constraint_->clone() : nullptr;
    GenerateOptions way{.max_gen_len = options_.max_gen_len,
                        .constraint = constraint.get(),
                        .detail = StepDetail::kConfidence,
                        .alternatives = kAlternatives,
                        .prefix = branch.ids};
    if (options_.cancelled) {
      way.on_token = [this](TokenId) { return !options_.cancelled(); };
    }
    GeneratedTokens generated = generate_tokens(session_, way);
    ++result_.expansions;
    if (generated.stop == StopReason::kCancelled) {
      result_.cancelled = true;
      return;
    }
    double log_probability = branch.log_probability;
    for (std::size_t i = 0; i < generated.steps.size(); ++i) {
      const TokenStep& step = generated.steps[i];
      for (const TokenAlternative& other : step.alternatives) {
        branch_off(std::span(generated.ids).first(branch.ids.size() + i), other, log_probability);
      }
      if (std::ssize(step.alternatives) == kAlternatives) {
        dropped_ = std::max(dropped_, log_probability + step.alternatives.back().log_probability);
      }
      log_probability += step.log_probability;
    }
    fed_ = generated.ids;
    add({.ids = std::move(generated.ids),
         .stop = generated.stop,
         .log_probability = log_probability});
  }

  void branch_off(std::span<const TokenId> before, const TokenAlternative& other,
                  double log_probability) {
    Branch branch{.ids = {before.begin(), before.end()},
                  .ended = other.id == kEosId,
                  .log_probability = log_probability + other.log_probability};
    if (!branch.ended) {
      branch.ids.push_back(other.id);
    }
    branches_.push_back(std::move(branch));
    std::ranges::push_heap(branches_, less_probable);
  }

  // Keeps what the session was fed of `ids`; at least one token is left to feed.
  void rewind_to(std::span<const TokenId> ids) {
    if (session_.position() == 0) {
      return;
    }
    const auto fed = std::span(fed_).first(
        std::min(fed_.size(), static_cast<std::size_t>(session_.position() - 1)));
    const auto common = std::ranges::mismatch(fed, ids).in1 - fed.begin();
    session_.rewind(std::min<std::int64_t>(common + 1, std::ssize(ids)));
  }

  EngineSession& session_;
  const Constraint* constraint_;
  const NBestOptions& options_;
  std::vector<Branch> branches_;  // a heap
  std::vector<TokenId> fed_;      // the last answer
  // The most probable beginning that was not kept is at most this probable.
  double dropped_ = -std::numeric_limits<double>::infinity();
  NBest result_;
};

}  // namespace

NBest n_best_tokens(EngineSession& session, const Constraint* constraint,
                    const NBestOptions& options) {
  NEEDLE_CHECK(options.count >= 1, "n-best: count is {}; it must be positive", options.count);
  session.rewind(0);
  return Search(session, constraint, options).run();
}

}  // namespace needle
