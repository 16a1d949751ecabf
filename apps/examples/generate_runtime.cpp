// Query and tools to calls with a .needle file: generate_runtime model.needle "Wake me at 7"
#include <iostream>

#include "needle/runtime/loaded_model.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    return std::cerr << "usage: generate_runtime MODEL.needle QUERY\n", 2;
  }
  const std::string tools = R"([{"name": "set_alarm", "description": "Wake the user.",
      "parameters": {"time": {"type": "string", "required": true}}}])";
  const auto model = needle::runtime::LoadedModel::load(argv[1]);
  std::cout << model.generate(argv[2], tools).text << '\n';
  model.generate(argv[2], tools, [](std::string_view text) { return bool(std::cout << text); });
  std::cout << '\n' << model.tokenizer().vocab_size() << " pieces\n";
}
