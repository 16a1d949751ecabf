#include "needle/decode/text_automaton.h"

#include <algorithm>
#include <array>
#include <deque>
#include <limits>
#include <map>
#include <queue>
#include <utility>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"

namespace needle {
namespace {

constexpr std::int32_t kNever = std::numeric_limits<std::int32_t>::max() / 4;
constexpr std::uint32_t kFirstSurrogate = 0xD800;
constexpr std::uint32_t kLastSurrogate = 0xDFFF;

// Fewest bytes to an end from every state, kNever from dead ones (Dijkstra from the ends).
std::vector<std::int32_t> distances(const std::vector<TextAutomaton::State>& states) {
  struct Way {
    std::int32_t from = 0, bytes = 0;
  };
  std::vector<std::vector<Way>> ways(states.size());  // into each state
  for (std::size_t from = 0; from < states.size(); ++from) {
    for (const TextAutomaton::Edge& edge : states[from].edges) {
      ways[static_cast<std::size_t>(edge.to)].push_back(
          {static_cast<std::int32_t>(from), fewest_json_bytes(edge.first, edge.last)});
    }
  }
  std::vector<std::int32_t> best(states.size(), kNever);
  using Entry = std::pair<std::int32_t, std::int32_t>;
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> open;
  for (std::size_t i = 0; i < states.size(); ++i) {
    if (states[i].may_end) {
      best[i] = 0;
      open.emplace(0, static_cast<std::int32_t>(i));
    }
  }
  while (!open.empty()) {
    const auto [distance, to] = open.top();
    open.pop();
    if (distance > best[static_cast<std::size_t>(to)]) {
      continue;
    }
    for (const Way& way : ways[static_cast<std::size_t>(to)]) {
      std::int32_t& known = best[static_cast<std::size_t>(way.from)];
      if (distance + way.bytes < known) {
        known = distance + way.bytes;
        open.emplace(known, way.from);
      }
    }
  }
  return best;
}

// States reachable from 0 that lead to an end, renumbered in the order of a breadth-first walk.
std::vector<TextAutomaton::State> trimmed(const std::vector<TextAutomaton::State>& states,
                                          const std::vector<std::int32_t>& best) {
  std::vector<std::int32_t> renamed(states.size(), -1);
  std::vector<std::int32_t> order{0};
  renamed[0] = 0;
  std::vector<TextAutomaton::State> kept;
  for (std::size_t i = 0; i < order.size(); ++i) {
    const TextAutomaton::State& old = states[static_cast<std::size_t>(order[i])];
    TextAutomaton::State state{.may_end = old.may_end,
                               .bytes_to_end = best[static_cast<std::size_t>(order[i])]};
    for (const TextAutomaton::Edge& edge : old.edges) {
      const auto to = static_cast<std::size_t>(edge.to);
      if (best[to] >= kNever) {
        continue;
      }
      if (renamed[to] < 0) {
        renamed[to] = static_cast<std::int32_t>(order.size());
        order.push_back(edge.to);
      }
      if (!state.edges.empty() && state.edges.back().last + 1 == edge.first &&
          state.edges.back().to == renamed[to]) {
        state.edges.back().last = edge.last;
      } else {
        state.edges.push_back({edge.first, edge.last, renamed[to]});
      }
    }
    kept.push_back(std::move(state));
  }
  return kept;
}

}  // namespace

void CodePoints::add(std::uint32_t first, std::uint32_t last) {
  if (first < kFirstSurrogate && last > kLastSurrogate) {
    add(first, kFirstSurrogate - 1);
    add(kLastSurrogate + 1, last);
    return;
  }
  if (first >= kFirstSurrogate && first <= kLastSurrogate) {
    first = kLastSurrogate + 1;
  }
  if (last >= kFirstSurrogate && last <= kLastSurrogate) {
    last = kFirstSurrogate - 1;
  }
  if (first > last) {
    return;
  }
  ranges_.push_back({first, last});
  std::ranges::sort(ranges_, {}, &Range::first);
  std::vector<Range> merged;
  for (const Range& range : ranges_) {
    if (!merged.empty() && range.first <= merged.back().last + 1) {
      merged.back().last = std::max(merged.back().last, range.last);
    } else {
      merged.push_back(range);
    }
  }
  ranges_ = std::move(merged);
}

void CodePoints::add(const CodePoints& other) {
  for (const Range& range : other.ranges_) {
    add(range.first, range.last);
  }
}

CodePoints CodePoints::complement() const {
  CodePoints rest;
  std::uint32_t next = 0;
  for (const Range& range : ranges_) {
    if (range.first > next) {
      rest.add(next, range.first - 1);
    }
    next = range.last + 1;
  }
  if (next <= kLastCodePoint) {
    rest.add(next, kLastCodePoint);
  }
  return rest;
}

bool CodePoints::contains(std::uint32_t code_point) const {
  const auto after = std::ranges::upper_bound(ranges_, code_point, {}, &Range::first);
  return after != ranges_.begin() && code_point <= std::prev(after)->last;
}

std::int32_t fewest_json_bytes(std::uint32_t first, std::uint32_t last) {
  constexpr std::array<std::pair<CodePoints::Range, std::int32_t>, 7> kClasses = {
      {{{0x20, 0x21}, 1},
       {{0x23, 0x5B}, 1},
       {{0x5D, 0x7F}, 1},
       {{0x22, 0x5C}, 2},  // what the rows above leave: the quote and the backslash
       {{0x80, 0x7FF}, 2},
       {{0x800, 0xFFFF}, 3},
       {{0x10000, kLastCodePoint}, 4}}};
  for (const auto& [range, bytes] : kClasses) {
    if (first <= range.last && last >= range.first) {
      return bytes;
    }
  }
  const auto has = [&](std::uint32_t c) { return first <= c && c <= last; };
  return has('\n') || has('\t') || has('\r') || has('\b') || has('\f') ? 2 : 6;
}

TextAutomaton TextAutomaton::anything() {
  State only{.may_end = true};
  const CodePoints all = CodePoints::all();
  for (const CodePoints::Range& range : all.ranges()) {
    only.edges.push_back({range.first, range.last, 0});
  }
  return *from_states({std::move(only)});
}

std::optional<TextAutomaton> TextAutomaton::from_states(std::vector<State> states) {
  const std::vector<std::int32_t> best = distances(states);
  if (states.empty() || best[0] >= kNever) {
    return std::nullopt;
  }
  TextAutomaton automaton;
  automaton.states_ = trimmed(states, best);
  for (const State& state : automaton.states_) {
    automaton.most_bytes_to_end_ = std::max(automaton.most_bytes_to_end_, state.bytes_to_end);
  }
  return automaton;
}

std::optional<TextAutomaton> TextAutomaton::intersect(const TextAutomaton& other) const {
  std::map<std::pair<std::int32_t, std::int32_t>, std::int32_t> numbers{{{0, 0}, 0}};
  std::vector<std::pair<std::int32_t, std::int32_t>> pairs{{0, 0}};
  std::vector<State> states;
  for (std::size_t i = 0; i < pairs.size(); ++i) {
    const State& a = at(pairs[i].first);
    const State& b = other.at(pairs[i].second);
    State state{.may_end = a.may_end && b.may_end};
    for (auto in_a = a.edges.begin(), in_b = b.edges.begin();
         in_a != a.edges.end() && in_b != b.edges.end();) {
      const std::uint32_t first = std::max(in_a->first, in_b->first);
      const std::uint32_t last = std::min(in_a->last, in_b->last);
      if (first <= last) {
        const auto [found, fresh] =
            numbers.try_emplace({in_a->to, in_b->to}, static_cast<std::int32_t>(pairs.size()));
        if (fresh) {
          pairs.push_back(found->first);
          if (pairs.size() > kMostStates) {
            throw Error("takes too many states");
          }
        }
        state.edges.push_back({first, last, found->second});
      }
      ++(in_a->last < in_b->last ? in_a : in_b);
    }
    states.push_back(std::move(state));
  }
  return from_states(std::move(states));
}

std::optional<TextAutomaton> TextAutomaton::with_length(std::int64_t min, std::int64_t max) const {
  const std::int64_t steps = max >= 0 ? max : min;  // lengths that are told apart
  if (steps >= static_cast<std::int64_t>(kMostStates)) {
    throw Error("takes too many states");
  }
  std::vector<State> counter(static_cast<std::size_t>(steps) + 1);
  const CodePoints all = CodePoints::all();
  for (std::int64_t length = 0; length <= steps; ++length) {
    State& state = counter[static_cast<std::size_t>(length)];
    state.may_end = length >= min;
    if (length == max) {
      continue;
    }
    const auto to = static_cast<std::int32_t>(std::min(length + 1, steps));
    for (const CodePoints::Range& range : all.ranges()) {
      state.edges.push_back({range.first, range.last, to});
    }
  }
  const std::optional<TextAutomaton> lengths = from_states(std::move(counter));
  return lengths ? intersect(*lengths) : std::nullopt;
}

std::int32_t TextAutomaton::advance(std::int32_t state, std::uint32_t code_point) const {
  const std::vector<Edge>& edges = at(state).edges;
  const auto after = std::ranges::upper_bound(edges, code_point, {}, &Edge::first);
  return after != edges.begin() && code_point <= std::prev(after)->last ? std::prev(after)->to : -1;
}

std::int32_t TextAutomaton::bytes_behind(std::int32_t state, std::uint32_t first,
                                         std::uint32_t last) const {
  std::int32_t best = -1;
  for (const Edge& edge : at(state).edges) {
    if (edge.first <= last && edge.last >= first) {
      const std::int32_t bytes = bytes_to_end(edge.to);
      best = best < 0 ? bytes : std::min(best, bytes);
    }
  }
  return best;
}

bool TextAutomaton::accepts(std::string_view text) const {
  std::int32_t state = kStart;
  for (std::size_t position = 0; position < text.size() && state >= 0;) {
    const std::size_t length = utf8_length_at(text, position);
    if (length == 0) {
      return false;
    }
    state = advance(state, utf8_code_point_at(text, position));
    position += length;
  }
  return state >= 0 && may_end(state);
}

}  // namespace needle
