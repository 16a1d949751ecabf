#include "needle/decode/pattern.h"

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <map>
#include <set>
#include <utility>
#include <vector>

#include "needle/calls/utf8.h"
#include "needle/core/error.h"
#include "needle/core/format.h"

namespace needle {
namespace {

constexpr std::size_t kMostNodes = 4096;        // of the nondeterministic automaton
constexpr std::int64_t kMostWork = 10'000'000;  // nodes looked at by the subset construction
constexpr int kDeepestGroup = 100;

enum class EdgeKind { kCharacters, kEmpty, kTextBegin, kTextEnd };
struct NfaEdge {
  EdgeKind kind = EdgeKind::kEmpty;
  std::int32_t characters = 0;  // index of a set
  std::int32_t to = 0;
};

// Thompson's construction.
struct Nfa {
  std::vector<std::vector<NfaEdge>> nodes;
  std::vector<CodePoints> sets;

  std::int32_t add() {
    if (nodes.size() >= kMostNodes) {
      throw Error("it is too large");
    }
    nodes.emplace_back();
    return static_cast<std::int32_t>(nodes.size()) - 1;
  }
  void connect(std::int32_t from, std::int32_t to, EdgeKind kind = EdgeKind::kEmpty,
               std::int32_t characters = 0) {
    nodes[static_cast<std::size_t>(from)].push_back({kind, characters, to});
  }
  std::int32_t set(const CodePoints& characters) {
    sets.push_back(characters);
    return static_cast<std::int32_t>(sets.size()) - 1;
  }
};

struct Fragment {
  std::int32_t begin = 0, end = 0;
};

CodePoints digits() { return {'0', '9'}; }
CodePoints word_characters() {
  CodePoints set('a', 'z');
  set.add('A', 'Z');
  set.add('0', '9');
  set.add('_', '_');
  return set;
}
CodePoints spaces() {
  CodePoints set('\t', '\r');
  set.add(' ', ' ');
  return set;
}
CodePoints dot() {
  CodePoints breaks('\n', '\n');
  breaks.add('\r', '\r');
  breaks.add(0x2028, 0x2029);
  return breaks.complement();
}

// Reads a pattern and builds its automaton at once; a repeated part is read again for each copy.
class PatternReader {
 public:
  PatternReader(std::string_view pattern, Nfa& nfa) : text_(pattern), nfa_(nfa) {}

  Fragment read() {
    const Fragment all = alternatives(0);
    if (at_ < text_.size()) {
      fail("')' without '('");
    }
    return all;
  }

 private:
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(format("{} at character {}", what, at_ + 1));
  }
  bool done() const { return at_ >= text_.size(); }
  char peek() const { return done() ? '\0' : text_[at_]; }
  bool take(std::string_view token) {
    if (!text_.substr(at_).starts_with(token)) {
      return false;
    }
    at_ += token.size();
    return true;
  }

  std::uint32_t character() {
    const std::size_t length = utf8_length_at(text_, at_);
    if (length == 0) {
      fail("text that is not UTF-8");
    }
    const std::uint32_t code_point = utf8_code_point_at(text_, at_);
    at_ += length;
    return code_point;
  }

  Fragment alternatives(int depth) {
    if (depth > kDeepestGroup) {
      fail("groups nested too deep");
    }
    Fragment all{nfa_.add(), nfa_.add()};
    do {
      const Fragment one = sequence(depth);
      nfa_.connect(all.begin, one.begin);
      nfa_.connect(one.end, all.end);
    } while (take("|"));
    return all;
  }

  Fragment sequence(int depth) {
    Fragment all;
    all.begin = all.end = nfa_.add();
    while (!done() && peek() != '|' && peek() != ')') {
      const Fragment next = repeated(depth);
      nfa_.connect(all.end, next.begin);
      all.end = next.end;
    }
    return all;
  }

  Fragment repeated(int depth) {
    const std::size_t begin = at_;
    const Fragment first = atom(depth);
    const std::size_t end = at_;
    std::int64_t least = 1, most = 1;
    if (!quantifier(least, most)) {
      return first;
    }
    const std::size_t after = at_;
    const auto copy = [&] {
      at_ = begin;
      const Fragment again = atom(depth);
      NEEDLE_CHECK(at_ == end, "a part of a pattern was read in two ways");
      return again;
    };
    Fragment all;
    all.begin = all.end = nfa_.add();
    bool first_used = false;
    const auto next = [&] { return std::exchange(first_used, true) ? copy() : first; };
    for (std::int64_t i = 0; i < least; ++i) {
      const Fragment one = next();
      nfa_.connect(all.end, one.begin);
      all.end = one.end;
    }
    const std::int32_t out = nfa_.add();
    nfa_.connect(all.end, out);
    if (most < 0) {
      const Fragment loop = next();
      const std::int32_t hub = nfa_.add();
      nfa_.connect(all.end, hub);
      nfa_.connect(hub, loop.begin);
      nfa_.connect(loop.end, hub);
      nfa_.connect(hub, out);
    }
    for (std::int64_t i = least; i < most; ++i) {
      const Fragment one = next();
      nfa_.connect(all.end, one.begin);
      nfa_.connect(one.end, out);
      all.end = one.end;
    }
    all.end = out;
    at_ = after;
    return all;
  }

  bool quantifier(std::int64_t& least, std::int64_t& most) {
    if (take("*")) {
      least = 0;
      most = -1;
    } else if (take("+")) {
      most = -1;
    } else if (take("?")) {
      least = 0;
    } else if (peek() != '{' || !counted(least, most)) {
      return false;
    }
    take("?");  // lazy: the same texts
    if (at_quantifier()) {
      fail("a quantifier behind a quantifier");
    }
    return true;
  }

  bool at_quantifier() {
    const std::size_t begin = at_;
    std::int64_t least = 0, most = 0;
    const bool found =
        peek() == '*' || peek() == '+' || peek() == '?' || (peek() == '{' && counted(least, most));
    at_ = begin;
    return found;
  }

  // {m}, {m,}, {m,n}; any other brace is a character.
  bool counted(std::int64_t& least, std::int64_t& most) {
    const std::size_t begin = at_;
    ++at_;
    const auto number = [&](std::int64_t& value) {
      const auto [end, error] =
          std::from_chars(text_.data() + at_, text_.data() + text_.size(), value);
      at_ = static_cast<std::size_t>(end - text_.data());
      return error == std::errc();
    };
    std::int64_t from = 0;
    if (peek() == '-' || !number(from)) {
      at_ = begin;
      return false;
    }
    std::int64_t to = from;
    if (take(",")) {
      to = -1;
      if (peek() != '}' && (peek() == '-' || !number(to))) {
        at_ = begin;
        return false;
      }
    }
    if (!take("}")) {
      at_ = begin;
      return false;
    }
    if (to >= 0 && to < from) {
      fail(format("a repetition of at least {} and at most {}", from, to));
    }
    if (from > static_cast<std::int64_t>(kMostNodes) ||
        to > static_cast<std::int64_t>(kMostNodes)) {
      throw Error("it is too large");
    }
    least = from;
    most = to;
    return true;
  }

  Fragment single(EdgeKind kind, const CodePoints& characters = {}) {
    const Fragment one{nfa_.add(), nfa_.add()};
    nfa_.connect(one.begin, one.end, kind,
                 kind == EdgeKind::kCharacters ? nfa_.set(characters) : 0);
    return one;
  }

  Fragment atom(int depth) {
    if (take("(?:") || (peek() == '(' && !text_.substr(at_).starts_with("(?") && take("("))) {
      const Fragment group = alternatives(depth + 1);
      if (!take(")")) {
        fail("'(' without ')'");
      }
      return group;
    }
    if (text_.substr(at_).starts_with("(?<") && text_.substr(at_ + 3, 1) != "=" &&
        text_.substr(at_ + 3, 1) != "!") {
      fail("a named group");
    }
    if (peek() == '(') {
      fail("look-around");
    }
    const bool begins = take("^");
    const bool ends = !begins && take("$");
    if (at_quantifier()) {
      fail("a quantifier of nothing");
    }
    if (begins) {
      return single(EdgeKind::kTextBegin);
    }
    if (ends) {
      return single(EdgeKind::kTextEnd);
    }
    if (take(".")) {
      return single(EdgeKind::kCharacters, dot());
    }
    if (take("[")) {
      return single(EdgeKind::kCharacters, bracket());
    }
    if (take("\\")) {
      return single(EdgeKind::kCharacters, escaped(/*in_bracket=*/false));
    }
    const std::uint32_t one = character();
    return single(EdgeKind::kCharacters, {one, one});
  }

  std::uint32_t hexadecimal(std::size_t count) {
    std::uint32_t value = 0;
    const std::string_view digits = text_.substr(at_, count);
    const auto [end, error] =
        std::from_chars(digits.data(), digits.data() + digits.size(), value, 16);
    if (digits.size() != count || error != std::errc() || end != digits.data() + count) {
      fail(format("expected {} hexadecimal digits", count));
    }
    at_ += count;
    return value;
  }

  // Behind a backslash.
  CodePoints escaped(bool in_bracket) {
    if (done()) {
      fail("a backslash at the end");
    }
    const char kind = peek();
    if ((kind >= '1' && kind <= '9') || kind == 'k') {
      fail("a back reference");
    }
    if (((kind == 'b' || kind == 'B') && !in_bracket) || kind == 'p' || kind == 'P' ||
        kind == 'c') {
      fail(format("\\{}", kind));
    }
    const std::uint32_t c = character();
    const auto one = [](std::uint32_t code_point) { return CodePoints(code_point, code_point); };
    switch (c) {
      case 'd':
        return digits();
      case 'D':
        return digits().complement();
      case 'w':
        return word_characters();
      case 'W':
        return word_characters().complement();
      case 's':
        return spaces();
      case 'S':
        return spaces().complement();
      case 'n':
        return one('\n');
      case 't':
        return one('\t');
      case 'r':
        return one('\r');
      case 'f':
        return one('\f');
      case 'v':
        return one('\v');
      case 'b':
        return one('\b');
      case '0':
        return one(0);
      case 'x':
        return one(hexadecimal(2));
      case 'u':
        return one(hexadecimal(4));
      default:
        return one(c);
    }
  }

  CodePoints bracket() {
    const bool negated = take("^");
    CodePoints set;
    while (!take("]")) {
      if (done()) {
        fail("'[' without ']'");
      }
      const CodePoints first = bracket_item();
      const bool range = peek() == '-' && at_ + 1 < text_.size() && text_[at_ + 1] != ']';
      if (!range) {
        set.add(first);
        continue;
      }
      ++at_;
      const CodePoints last = bracket_item();
      if (!is_one(first) || !is_one(last) || first.ranges()[0].first > last.ranges()[0].first) {
        fail("a range that is not one");
      }
      set.add(first.ranges()[0].first, last.ranges()[0].first);
    }
    return negated ? set.complement() : set;
  }

  CodePoints bracket_item() {
    if (take("\\")) {
      return escaped(/*in_bracket=*/true);
    }
    const std::uint32_t one = character();
    return {one, one};
  }

  static bool is_one(const CodePoints& set) {
    return set.ranges().size() == 1 && set.ranges()[0].first == set.ranges()[0].last;
  }

  std::string_view text_;
  std::size_t at_ = 0;
  Nfa& nfa_;
};

using NodeSet = std::vector<std::int32_t>;  // ascending

void close(const Nfa& nfa, NodeSet& nodes, bool at_begin, bool at_end) {
  std::vector<bool> seen(nfa.nodes.size());
  for (const std::int32_t node : nodes) {
    seen[static_cast<std::size_t>(node)] = true;
  }
  for (std::size_t i = 0; i < nodes.size(); ++i) {
    const std::int32_t node = nodes[i];
    for (const NfaEdge& edge : nfa.nodes[static_cast<std::size_t>(node)]) {
      const bool free = edge.kind == EdgeKind::kEmpty ||
                        (edge.kind == EdgeKind::kTextBegin && at_begin) ||
                        (edge.kind == EdgeKind::kTextEnd && at_end);
      if (free && !seen[static_cast<std::size_t>(edge.to)]) {
        seen[static_cast<std::size_t>(edge.to)] = true;
        nodes.push_back(edge.to);
      }
    }
  }
  std::ranges::sort(nodes);
}

// The subset construction.
std::vector<TextAutomaton::State> determinised(const Nfa& nfa, std::int32_t begin,
                                               std::int32_t accept) {
  NodeSet start{begin};
  close(nfa, start, /*at_begin=*/true, /*at_end=*/false);
  // The text's begin matters to the first state only; it is told apart even if a later set of nodes
  // is the same.
  std::map<std::pair<bool, NodeSet>, std::int32_t> numbers{{{true, start}, 0}};
  std::vector<NodeSet> sets{start};
  std::vector<TextAutomaton::State> states;
  std::int64_t work = 0;
  for (std::size_t i = 0; i < sets.size(); ++i) {
    TextAutomaton::State state;
    NodeSet ending = sets[i];
    close(nfa, ending, /*at_begin=*/i == 0, /*at_end=*/true);
    state.may_end = std::ranges::binary_search(ending, accept);

    std::map<std::uint32_t, std::vector<std::pair<std::int32_t, bool>>> changes;  // at code points
    for (const std::int32_t node : sets[i]) {
      for (const NfaEdge& edge : nfa.nodes[static_cast<std::size_t>(node)]) {
        if (edge.kind != EdgeKind::kCharacters) {
          continue;
        }
        for (const CodePoints::Range& range :
             nfa.sets[static_cast<std::size_t>(edge.characters)].ranges()) {
          changes[range.first].emplace_back(edge.to, true);
          changes[range.last + 1].emplace_back(edge.to, false);
        }
      }
    }
    std::map<std::int32_t, int> live;  // targets of the edges that the present code point has
    for (auto change = changes.begin(); change != changes.end(); ++change) {
      for (const auto& [to, begins] : change->second) {
        live[to] += begins ? 1 : -1;
      }
      NodeSet next;
      for (const auto& [to, count] : live) {
        if (count > 0) {
          next.push_back(to);
        }
      }
      if (next.empty()) {
        continue;
      }
      close(nfa, next, /*at_begin=*/false, /*at_end=*/false);
      work += static_cast<std::int64_t>(next.size() + live.size() + nfa.nodes.size() / 64);
      const auto [found, fresh] =
          numbers.try_emplace({false, next}, static_cast<std::int32_t>(sets.size()));
      if (fresh) {
        sets.push_back(next);
        if (sets.size() > TextAutomaton::kMostStates || work > kMostWork) {
          throw Error("it needs too many states");
        }
      }
      state.edges.push_back({change->first, std::next(change)->first - 1, found->second});
    }
    states.push_back(std::move(state));
  }
  return states;
}

}  // namespace

CompiledPattern compile_pattern(std::string_view pattern) {
  CompiledPattern compiled;
  try {
    Nfa nfa;
    const std::int32_t begin = nfa.add();
    const Fragment found = PatternReader(pattern, nfa).read();
    const std::int32_t accept = nfa.add();
    const std::int32_t anything = nfa.set(CodePoints::all());
    nfa.connect(begin, begin, EdgeKind::kCharacters, anything);
    nfa.connect(begin, found.begin);
    nfa.connect(found.end, accept);
    nfa.connect(accept, accept, EdgeKind::kCharacters, anything);
    compiled.automaton = TextAutomaton::from_states(determinised(nfa, begin, accept));
    if (!compiled.automaton) {
      compiled.problem.message = kNoText;
    }
  } catch (const Error& error) {
    compiled.problem.message = error.what();
  }
  return compiled;
}

}  // namespace needle
