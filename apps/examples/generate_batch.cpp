// A line of input, a line of calls, eight at a time: generate_batch model.needle < queries.txt
#include <iostream>
#include <string>
#include <vector>

#include "needle/runtime/loaded_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    return std::cerr << "usage: generate_batch MODEL.needle < QUERIES\n", 2;
  }
  const std::string tools = R"([{"name": "set_alarm", "description": "Wake the user.",
      "parameters": {"time": {"type": "string", "required": true}}}])";
  const auto model = needle::runtime::LoadedModel::load(argv[1]);
  std::string line;
  while (std::cin) {
    std::vector<needle::CallRequest> batch;
    while (batch.size() < 8 && std::getline(std::cin, line)) {
      batch.push_back({.query = line, .tools_json = tools});
    }
    for (const needle::CallResult& answer : model.call_batch(batch)) {
      std::cout << answer.text << '\n';
    }
  }
}
