// Speed of the tokenizer against SentencePiece on lines of text, interleaved in one run.
// usage: tokenizer-bench TOKENIZER.model TEXT_FILE...   Exit code 1 if the ids differ.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <string>
#include <vector>

#include <sentencepiece_processor.h>

#include "needle/core/error.h"
#include "needle/core/file.h"
#include "needle/text/tokenizer.h"

namespace needle {
namespace {

constexpr int kRounds = 15;

std::vector<std::string> read_lines(const std::string& path) {
  const std::string text = read_file(path);
  std::vector<std::string> lines;
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = std::min(text.find('\n', at), text.size());
    lines.push_back(text.substr(at, end - at));
    at = end + 1;
  }
  return lines;
}

// Milliseconds of the fastest of the rounds so far.
template <class Work>
void time(double& best, Work&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  const std::chrono::duration<double, std::milli> spent = std::chrono::steady_clock::now() - start;
  best = std::min(best, spent.count());
}

int run(const std::string& model_path, const std::vector<std::string>& lines) {
  const std::string model = read_file(model_path);
  double load_own = 1e9;
  double load_peer = 1e9;
  for (int i = 0; i < 5; ++i) {
    time(load_own, [&] { Tokenizer::from_bytes(model); });
    time(load_peer, [&] {
      sentencepiece::SentencePieceProcessor peer;
      NEEDLE_CHECK(peer.LoadFromSerializedProto(model).ok(), "SentencePiece refuses the model");
    });
  }
  const Tokenizer own = Tokenizer::from_bytes(model);
  sentencepiece::SentencePieceProcessor peer;
  NEEDLE_CHECK(peer.LoadFromSerializedProto(model).ok(), "SentencePiece refuses the model");

  std::size_t bytes = 0;
  std::size_t different = 0;
  std::vector<std::vector<TokenId>> encoded;
  for (const std::string& line : lines) {
    bytes += line.size();
    encoded.push_back(own.encode(line, SpecialText::kSpecial));
    different += encoded.back() == peer.EncodeAsIds(line) ? 0 : 1;
  }
  std::size_t tokens = 0;  // keeps the work from being left out
  double encode_own = 1e9;
  double encode_peer = 1e9;
  double decode_own = 1e9;
  double decode_peer = 1e9;
  for (int i = 0; i < kRounds; ++i) {
    time(encode_own, [&] {
      for (const std::string& line : lines) {
        tokens += own.encode(line, SpecialText::kSpecial).size();
      }
    });
    time(encode_peer, [&] {
      std::vector<int> ids;
      for (const std::string& line : lines) {
        NEEDLE_CHECK(peer.Encode(line, &ids).ok(), "SentencePiece cannot encode");
        tokens += ids.size();
      }
    });
    time(decode_own, [&] {
      for (const auto& ids : encoded) {
        tokens += own.decode(ids).size();
      }
    });
    time(decode_peer, [&] {
      std::string text;
      for (const auto& ids : encoded) {
        NEEDLE_CHECK(peer.Decode(ids, &text).ok(), "SentencePiece cannot decode");
        tokens += text.size();
      }
    });
  }
  const double megabytes = static_cast<double>(bytes) / 1e6;
  std::printf("%zu lines, %.2f MB, fastest of %d rounds, one thread (%zu)\n", lines.size(),
              megabytes, kRounds, tokens % 10);
  const auto row = [&](const char* name, double own_ms, double peer_ms) {
    std::printf("%s: own %.2f ms, SentencePiece %.2f ms, ratio %.2f\n", name, own_ms, peer_ms,
                peer_ms / own_ms);
  };
  row("encode", encode_own, encode_peer);
  row("decode", decode_own, decode_peer);
  row("load", load_own, load_peer);
  std::printf("encode: own %.1f MB/s; lines with different ids: %zu\n",
              megabytes / encode_own * 1e3, different);
  return different == 0 ? 0 : 1;
}

}  // namespace
}  // namespace needle

int main(int argc, char** argv) {
  if (argc < 3) {
    std::fprintf(stderr, "usage: tokenizer-bench TOKENIZER.model TEXT_FILE...\n");
    return 2;
  }
  try {
    std::vector<std::string> lines;
    for (int i = 2; i < argc; ++i) {
      const auto more = needle::read_lines(argv[i]);
      lines.insert(lines.end(), more.begin(), more.end());
    }
    return needle::run(argv[1], lines);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "tokenizer-bench: %s\n", error.what());
    return 1;
  }
}
