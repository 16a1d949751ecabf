// What a file is and what it holds, whichever of the formats that this project reads or writes.
#pragma once

#include <filesystem>
#include <string>

#include "needle/core/json.h"

namespace needle {

// A weights file, safetensors (data sets too), a pickle, a SentencePiece model, a checkpoint or run
// folder. "kind" tells which; every other member depends on it. Reads and checks the whole file.
// Throws FileError or FormatError.
Json inspect(const std::filesystem::path& path);

// The same for people: facts first, then a table of the tensors.
std::string inspection_text(const Json& inspection);

}  // namespace needle
