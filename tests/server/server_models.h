// Weights files for tests of the server.
#pragma once

#include <filesystem>

namespace needle::test {

// The reference's small trained model with its tokenizer. False if the golden folder lacks it.
bool write_trained_model(const std::filesystem::path& path);

// Random weights under the same tokenizer, of a size at which an answer of some hundred tokens
// takes about a second: what waits, is late or is cancelled can be told apart.
bool write_slow_model(const std::filesystem::path& path);

// Random INT4 weights in the shape of the released model, but with this vocabulary.
bool write_large_model(const std::filesystem::path& path);

}  // namespace needle::test
