// A tool index kept on disk, so that a large set of tools is embedded once and not at every start.
#pragma once

#include <filesystem>
#include <span>
#include <string>
#include <string_view>

#include "needle/decode/retrieve.h"

namespace needle {

struct CachedToolIndex {
  ToolIndex index;
  bool from_file = false;  // false: the tools were embedded now, and the file written
};

// Takes the embeddings from `path` if the file was made by this function for the same tools in the
// same order, options, tokenizer and model, and is whole; else embeds the tools and writes the file
// atomically. `model`: any text that differs between models that embed differently. Keeps
// references like ToolIndex. Throws FileError if the file can be neither used nor written.
CachedToolIndex cached_tool_index(const Engine& engine, const Tokenizer& tokenizer,
                                  std::span<const std::string> tools,
                                  const RetrieveOptions& options, const std::filesystem::path& path,
                                  std::string_view model);

}  // namespace needle
