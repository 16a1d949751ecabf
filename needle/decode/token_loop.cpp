#include "needle/decode/token_loop.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "needle/core/error.h"

namespace needle {
namespace {

template <typename Visit>
void for_each_token(std::span<const float> logits, const TokenSet* allowed, Visit&& visit) {
  if (allowed != nullptr) {
    allowed->for_each([&](TokenId id) { visit(id, logits[static_cast<std::size_t>(id)]); });
    return;
  }
  for (std::size_t id = 0; id < logits.size(); ++id) {
    visit(static_cast<TokenId>(id), logits[id]);
  }
}

void check_size(std::span<const float> logits, const TokenSet* allowed) {
  NEEDLE_CHECK(allowed == nullptr || allowed->vocab_size() <= std::ssize(logits),
               "the constraint knows {} tokens, the model has only {} logits",
               allowed->vocab_size(), logits.size());
}

// log(sum(exp(logits))) over the allowed tokens; NaN counts nothing.
double log_sum(std::span<const float> logits, const TokenSet* allowed) {
  double top = -std::numeric_limits<double>::infinity();
  for_each_token(logits, allowed, [&](TokenId, float logit) {
    if (logit > top) {
      top = logit;
    }
  });
  if (!std::isfinite(top)) {
    return top;
  }
  double sum = 0;
  for_each_token(logits, allowed, [&](TokenId, float logit) {
    if (!std::isnan(logit)) {
      sum += std::exp(static_cast<double>(logit) - top);
    }
  });
  return top + std::log(sum);
}

double log_share(float logit, double total) {
  if (std::isnan(logit)) {
    return -std::numeric_limits<double>::infinity();
  }
  return std::isfinite(total) ? static_cast<double>(logit) - total : 0.0;
}

class TokenLoop {
 public:
  TokenLoop(EngineSession& session, const GenerateOptions& options)
      : session_(session), options_(options) {
    NEEDLE_CHECK(options.max_gen_len >= 1, "max_gen_len is {}; it must be positive",
                 options.max_gen_len);
    const auto room = static_cast<std::size_t>(options.max_gen_len) + options.prefix.size();
    generated_.ids.reserve(room);
    pending_.reserve(room + 1);
    run_.reserve(std::max<std::size_t>(room, 512));
    if (options.detail != StepDetail::kNone) {
      generated_.steps.reserve(room);
    }
    generated_.stop = StopReason::kMaxTokens;
    begin();
  }

  // Settles tokens until the model must be asked; false: the answer is whole.
  bool advance() {
    while (!over_ && tokens_left() > 0) {
      if (run_at_ == run_.size()) {
        find_forced();
      }
      if (run_at_ == run_.size() || options_.detail == StepDetail::kTrace) {
        return true;
      }
      force(run_[run_at_], {});
    }
    return false;
  }

  // What the engine is to be fed for the answer to the question.
  SessionFeed question() const {
    const bool all = options_.detail == StepDetail::kTrace;
    return {.session = &session_, .tokens = pending_, .wanted = all ? nullptr : allowed_};
  }

  void answer(std::span<const float> logits) {
    pending_.clear();
    if (run_at_ < run_.size()) {
      force(run_[run_at_], logits);
    } else {
      choose(logits);
    }
  }

  GeneratedTokens take_result() {
    if (!over_ && is_whole()) {
      generated_.stop = StopReason::kEos;
    }
    return std::move(generated_);
  }

 private:
  std::int64_t tokens_left() const { return options_.max_gen_len - 1 - std::ssize(generated_.ids); }

  // The budget is spent, and eos could have followed.
  bool is_whole() const {
    const TokenSet* const next =
        options_.constraint != nullptr ? options_.constraint->allowed(0) : nullptr;
    return next != nullptr && next->contains(kEosId);
  }

  void begin() {
    const std::int64_t fed = session_.position();
    NEEDLE_CHECK(fed <= std::ssize(options_.prefix),
                 "the session was fed {} tokens; eos and a prefix of {} leave nothing to ask", fed,
                 options_.prefix.size());
    pending_.push_back(kEosId);
    pending_.insert(pending_.end(), options_.prefix.begin(), options_.prefix.end());
    pending_.erase(pending_.begin(), pending_.begin() + fed);
    for (const TokenId id : options_.prefix) {
      watch_settled(id);
      generated_.ids.push_back(id);
      if (options_.constraint != nullptr) {
        options_.constraint->accept(id);
      }
    }
  }

  // The next run of tokens that the constraint leaves no choice of; empty: what it allows.
  void find_forced() {
    run_.clear();
    run_at_ = 0;
    if (options_.constraint == nullptr) {
      return;
    }
    const std::span<const TokenId> forced = options_.constraint->forced(tokens_left());
    run_.assign(forced.begin(), forced.end());  // accept() may move what `forced` shows
    if (run_.empty()) {
      allowed_ = options_.constraint->allowed(tokens_left());
      if (allowed_ != nullptr && allowed_->count() == 1) {
        allowed_->for_each([this](TokenId id) { run_.push_back(id); });
      }
    }
  }

  // `logits`: with kTrace, what the model would have said.
  void force(TokenId id, std::span<const float> logits) {
    ++run_at_;
    ++generated_.forced_tokens;
    watch_settled(id);
    if (options_.detail != StepDetail::kNone) {
      TokenStep step{.id = id, .forced = true, .allowed_tokens = 1};
      if (options_.detail == StepDetail::kTrace) {
        const double total = log_sum(logits, nullptr);
        const double own = log_share(logits[static_cast<std::size_t>(id)], total);
        step.outside = std::max(0.0, 1 - std::exp(own));
        add_alternatives(step, logits, nullptr, total, [id](TokenId other) { return other == id; });
      }
      generated_.steps.push_back(std::move(step));
    }
    take(id);
  }

  void choose(std::span<const float> logits) {
    check_size(logits, allowed_);
    const TokenId id = best_token(logits, allowed_);
    ++generated_.chosen_tokens;
    if (options_.detail != StepDetail::kNone) {
      record(id, logits, allowed_);
    }
    take(id);
  }

  void record(TokenId id, std::span<const float> logits, const TokenSet* allowed) {
    const double among = log_sum(logits, allowed);
    const auto logit = [&](TokenId token) { return logits[static_cast<std::size_t>(token)]; };
    TokenStep step{.id = id,
                   .allowed_tokens = allowed != nullptr ? allowed->count() : std::ssize(logits),
                   .log_probability = log_share(logit(id), among)};
    if (watching_ && next_watched() != id) {
      const TokenId other = next_watched();
      const bool possible = allowed == nullptr || allowed->contains(other);
      generated_.watched_log_probability +=
          possible ? log_share(logit(other), among) : -std::numeric_limits<double>::infinity();
      watching_ = false;
    } else if (watching_) {
      generated_.watched_log_probability += step.log_probability;
      ++watched_;
    }
    if (options_.detail == StepDetail::kTrace) {
      const double total = log_sum(logits, nullptr);
      step.outside = std::max(0.0, 1 - std::exp(among - total));
      add_alternatives(step, logits, nullptr, total, [&](TokenId other) {
        return allowed == nullptr || allowed->contains(other);
      });
    } else {
      add_alternatives(step, logits, allowed, among, [](TokenId) { return true; });
    }
    generated_.steps.push_back(std::move(step));
  }

  template <typename IsAllowed>
  void add_alternatives(TokenStep& step, std::span<const float> logits, const TokenSet* among,
                        double total, IsAllowed is_allowed) const {
    const auto most = static_cast<std::size_t>(std::max<std::int64_t>(0, options_.alternatives));
    if (most == 0) {
      return;
    }
    const auto better = [](const TokenAlternative& a, const TokenAlternative& b) {
      return a.log_probability > b.log_probability ||
             (a.log_probability == b.log_probability && a.id < b.id);
    };
    for_each_token(logits, among, [&](TokenId id, float logit) {
      if (id == step.id || std::isnan(logit)) {
        return;
      }
      const TokenAlternative candidate{.id = id, .log_probability = log_share(logit, total)};
      if (step.alternatives.size() == most && !better(candidate, step.alternatives.back())) {
        return;
      }
      if (step.alternatives.size() == most) {
        step.alternatives.pop_back();
      }
      step.alternatives.insert(std::ranges::upper_bound(step.alternatives, candidate, better),
                               candidate);
    });
    for (TokenAlternative& alternative : step.alternatives) {
      alternative.allowed = is_allowed(alternative.id);
    }
  }

  TokenId next_watched() const {
    return watched_ < options_.watched.size() ? options_.watched[watched_] : kEosId;
  }

  // A token that nobody chose.
  void watch_settled(TokenId id) {
    if (!watching_) {
      return;
    }
    if (next_watched() == id) {
      ++watched_;
    } else {
      generated_.watched_log_probability = -std::numeric_limits<double>::infinity();
      watching_ = false;
    }
  }

  void take(TokenId id) {
    if (id == kEosId) {
      end(StopReason::kEos);
      return;
    }
    if (options_.constraint != nullptr) {
      options_.constraint->accept(id);
    }
    generated_.ids.push_back(id);
    pending_.push_back(id);
    if (options_.on_token && !options_.on_token(id)) {
      end(StopReason::kCancelled);
    }
  }

  void end(StopReason reason) {
    generated_.stop = reason;
    over_ = true;
  }

  EngineSession& session_;
  const GenerateOptions& options_;
  GeneratedTokens generated_;
  std::vector<TokenId> pending_;       // taken, not fed yet
  std::vector<TokenId> run_;           // of forced tokens
  std::size_t run_at_ = 0;             // the next of them
  const TokenSet* allowed_ = nullptr;  // where no token is forced
  std::size_t watched_ = 0;            // tokens of options_.watched that came
  bool watching_ = true;
  bool over_ = false;
};

}  // namespace

TokenId best_token(std::span<const float> logits, const TokenSet* allowed) {
  std::optional<TokenId> best;
  bool any = false;
  float top = 0;
  for_each_token(logits, allowed, [&](TokenId id, float logit) {
    any = true;
    if (best ? logit > top : !std::isnan(logit)) {
      best = id;
      top = logit;
    }
  });
  NEEDLE_CHECK(any, "the constraint allows no token");
  if (!best) {
    throw Error("no logit of the model is a number: its weights are damaged or have diverged");
  }
  return *best;
}

GeneratedTokens generate_tokens(EngineSession& session, const GenerateOptions& options) {
  TokenLoop loop(session, options);
  while (loop.advance()) {
    const SessionFeed next = loop.question();
    loop.answer(session.feed(next.tokens, next.wanted));
  }
  return loop.take_result();
}

std::vector<GeneratedTokens> generate_batch(const Engine& engine,
                                            std::span<const GenerateRequest> requests) {
  std::vector<TokenLoop> loops;
  loops.reserve(requests.size());
  for (const GenerateRequest& request : requests) {
    loops.emplace_back(*request.session, *request.options);
  }
  std::vector<SessionFeed> feeds;
  std::vector<TokenLoop*> asking;
  feeds.reserve(loops.size());
  asking.reserve(loops.size());
  while (true) {
    feeds.clear();
    asking.clear();
    for (TokenLoop& loop : loops) {
      if (loop.advance()) {
        feeds.push_back(loop.question());
        asking.push_back(&loop);
      }
    }
    if (feeds.empty()) {
      break;
    }
    engine.feed(feeds);
    for (std::size_t i = 0; i < asking.size(); ++i) {
      asking[i]->answer(feeds[i].logits);
    }
  }
  std::vector<GeneratedTokens> results;
  results.reserve(loops.size());
  for (TokenLoop& loop : loops) {
    results.push_back(loop.take_result());
  }
  return results;
}

}  // namespace needle
