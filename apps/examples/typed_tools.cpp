// Functions of this program as tools: typed_tools model.needle "Wake me at 7"
#include <iostream>
#include <optional>
#include <string>
#include <vector>

#include "needle/calls/tool_box.h"
#include "needle/runtime/loaded_model.h"

enum class Repeat { kOnce, kDaily };
inline constexpr needle::EnumNames<Repeat, 2> kRepeatNames{
    {{{Repeat::kOnce, "once"}, {Repeat::kDaily, "daily"}}}};
template <>
struct needle::EnumTable<Repeat> {
  static constexpr const auto& value = kRepeatNames;
};

struct SetAlarm {
  std::string time;
  std::optional<Repeat> repeat;

  template <class Self, class Visitor>
  static void visit_fields(Self& self, Visitor&& visit) {
    visit("time", self.time, "When", needle::FieldLimits{.min_length = 1, .max_length = 20});
    visit("repeat", self.repeat, "How often");
  }
};

int main(int argc, char** argv) {
  if (argc != 3) {
    return std::cerr << "usage: typed_tools MODEL.needle QUERY\n", 2;
  }
  needle::ToolBox tools;
  tools.add("set_alarm", "Wake the user.", [](const SetAlarm& alarm) {
    const bool daily = alarm.repeat == Repeat::kDaily;
    return "rings at " + alarm.time + (daily ? " every day" : "");
  });
  tools.add("set_timer", "Count down.", {{"minutes", "How long", {.minimum = 1, .maximum = 600}}},
            [](int minutes) { return minutes * 60; });
  const auto model = needle::runtime::LoadedModel::load(argv[1]);
  const std::string answer = model.generate(argv[2], tools.json()).text;
  for (const needle::ToolOutcome& outcome : tools.dispatch(answer)) {
    std::cout << outcome.call.name << ": " << needle::write_compact(outcome.result) << '\n';
    for (const needle::CallProblem& problem : outcome.problems) {
      std::cout << "  " << problem.path << ": " << problem.message << '\n';
    }
  }
}
