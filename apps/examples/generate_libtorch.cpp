// Query and tools to calls with a checkpoint: generate_libtorch runs/mine "Wake me at 7"
#include <iostream>

#include "needle/decode/generate.h"
#include "needle/model/model_engine.h"
#include "needle/train/saved_model.h"

int main(int argc, char** argv) {
  if (argc != 3) {
    return std::cerr << "usage: generate_libtorch RUN QUERY\n", 2;
  }
  const std::string tools = R"([{"name": "set_alarm", "description": "Wake the user.",
      "parameters": {"time": {"type": "string", "required": true}}}])";
  const needle::SavedModel saved = needle::load_saved_model(argv[1]);
  const needle::ModelEngine engine(saved.model);
  const needle::FunctionCaller caller(engine, saved.tokenizer, saved.prompt);
  std::cout << caller.call({.query = argv[2], .tools_json = tools}).text << '\n';
  const auto print = [](std::string_view text) { return bool(std::cout << text); };
  caller.call({.query = argv[2], .tools_json = tools, .on_text = print});
  std::cout << '\n' << saved.tokenizer.vocab_size() << " pieces\n";
}
