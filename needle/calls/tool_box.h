// Typed tools: functions of the program that a model may call. The schemas that it is shown come
// from the functions' argument types, and its calls are checked before they reach them.
//
//   ToolBox tools;
//   tools.add("set_alarm", "Wake the user", [](const SetAlarm& alarm) { return ring_at(alarm); });
//   tools.add("stop", "Stop everything", [] { silence(); });
//   tools.add("roll", "Roll dice", {{"count", "How many dice"}}, [](int count) { ... });
//   const auto outcomes = tools.dispatch(model.generate(query, tools.json()).text);
#pragma once

#include <functional>
#include <initializer_list>
#include <optional>
#include <string>
#include <string_view>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#include "needle/calls/call.h"
#include "needle/calls/json_value.h"
#include "needle/calls/tool.h"
#include "needle/calls/tool_schema.h"

namespace needle {

// A parameter of a function whose arguments are not a struct.
struct ToolArgument {
  std::string name;
  std::string description;
  FieldLimits limits{};
};

// What became of one call.
struct ToolOutcome {
  Call call;
  bool ran = false;                   // the function was called
  JsonValue result;                   // what it returned; null if nothing
  std::vector<CallProblem> problems;  // why it was not called: "[0].arguments.hour: ..."
  std::string error;                  // what it threw

  bool ok() const { return ran && error.empty(); }
};

struct DispatchOptions {
  // One wrong call stops all of them: what was asked for is not done by halves. False: those
  // without problems run.
  bool all_or_none = true;
};

// Tools are added before it is used; then it is safe from several threads as far as its functions
// are.
class ToolBox {
 public:
  // `handler` takes a struct that tool_schema.h can read, or nothing. What it returns becomes
  // ToolOutcome::result. Throws ConfigError if the name is empty or taken.
  template <typename Handler>
  ToolBox& add(std::string name, std::string description, Handler handler);
  // `handler` takes one value for each of `arguments`, in their order.
  template <typename Handler>
  ToolBox& add(std::string name, std::string description,
               std::initializer_list<ToolArgument> arguments, Handler handler);

  const std::vector<Tool>& tools() const { return tools_; }
  // What generate() takes: flat parameters, as models of this project are trained on, or JSON
  // Schema for a tool with a parameter that is a struct.
  std::string json() const;

  // Every problem of the calls, none if they may run.
  std::vector<CallProblem> check(const std::vector<Call>& calls) const;
  // Checks the calls and runs them in order; the outcomes are in that order. What a handler throws
  // is its outcome's error, and the next one runs. `answer`: a model's text. Throws DataError if it
  // is no list of calls.
  std::vector<ToolOutcome> dispatch(std::string_view answer,
                                    const DispatchOptions& options = {}) const;
  std::vector<ToolOutcome> dispatch(const std::vector<Call>& calls,
                                    const DispatchOptions& options = {}) const;

 private:
  // Reads the arguments and gives what is left to do. Throws DataError.
  using Bound = std::function<JsonValue()>;
  using Binder = std::function<Bound(const JsonValue& arguments, const std::string& path)>;
  void add_bound(std::string name, std::string description, JsonValue schema, Binder binder);
  Bound bind(const Call& call, const std::string& path) const;

  std::vector<Tool> tools_;
  std::vector<Binder> binders_;  // of the tools
};

namespace internal {

template <typename>
struct Signature;
template <typename Result, typename... Args>
struct Signature<Result (*)(Args...)> {
  using Arguments = std::tuple<std::remove_cvref_t<Args>...>;
};
template <typename Result, typename Class, typename... Args>
struct Signature<Result (Class::*)(Args...)> : Signature<Result (*)(Args...)> {};
template <typename Result, typename Class, typename... Args>
struct Signature<Result (Class::*)(Args...) const> : Signature<Result (*)(Args...)> {};

template <typename Handler>
struct SignatureOf : Signature<decltype(&Handler::operator())> {};
template <typename Result, typename... Args>
struct SignatureOf<Result (*)(Args...)> : Signature<Result (*)(Args...)> {};

template <typename Handler, typename Tuple>
JsonValue call_handler(const Handler& handler, const Tuple& arguments) {
  if constexpr (std::is_void_v<decltype(std::apply(handler, arguments))>) {
    std::apply(handler, arguments);
    return {};
  } else {
    using Result = std::remove_cvref_t<decltype(std::apply(handler, arguments))>;
    if constexpr (std::is_convertible_v<Result, std::string_view>) {
      return JsonValue::string(std::string(std::apply(handler, arguments)));
    } else {
      return result_value<Result>(std::apply(handler, arguments));
    }
  }
}

}  // namespace internal

template <typename Handler>
ToolBox& ToolBox::add(std::string name, std::string description, Handler handler) {
  using Arguments = typename internal::SignatureOf<Handler>::Arguments;
  static_assert(std::tuple_size_v<Arguments> <= 1, "name the arguments: add(name, text, {...}, f)");
  if constexpr (std::tuple_size_v<Arguments> == 0) {
    add_bound(std::move(name), std::move(description), internal::empty_object_schema(),
              [handler](const JsonValue&, const std::string&) -> Bound {
                return [handler] { return internal::call_handler(handler, std::tuple<>()); };
              });
  } else {
    using Struct = std::tuple_element_t<0, Arguments>;
    static_assert(FieldStruct<Struct>, "a struct with visit_fields, or name the argument");
    add_bound(std::move(name), std::move(description), internal::schema_of<Struct>(),
              [handler](const JsonValue& arguments, const std::string& path) -> Bound {
                Struct value{};
                internal::read_argument(arguments, path, value);
                return [handler, value = std::move(value)] {
                  return internal::call_handler(handler, std::tie(value));
                };
              });
  }
  return *this;
}

template <typename Handler>
ToolBox& ToolBox::add(std::string name, std::string description,
                      std::initializer_list<ToolArgument> arguments, Handler handler) {
  using Arguments = typename internal::SignatureOf<Handler>::Arguments;
  std::vector<std::string> names;
  JsonValue schema = internal::empty_object_schema();
  [&]<std::size_t... I>(std::index_sequence<I...>) {
    NEEDLE_CHECK(arguments.size() == sizeof...(I), "{}: {} arguments named, the function takes {}",
                 name, arguments.size(), sizeof...(I));
    (
        [&] {
          using Value = std::tuple_element_t<I, Arguments>;
          const ToolArgument& argument = arguments.begin()[I];
          internal::add_property(schema, argument.name, argument.description,
                                 !internal::kIsOptional<Value>,
                                 internal::schema_of<Value>(argument.limits));
          names.push_back(argument.name);
        }(),
        ...);
  }
  (std::make_index_sequence<std::tuple_size_v<Arguments>>());
  add_bound(std::move(name), std::move(description), std::move(schema),
            [handler, names](const JsonValue& given, const std::string& path) -> Bound {
              Arguments values{};
              std::size_t index = 0;
              const auto read = [&](auto& value) {
                const std::string& own = names[index++];
                if (const JsonValue* member = given.find(own)) {
                  internal::read_argument(*member, internal::child_path(path, own), value);
                }
              };
              std::apply([&](auto&... value) { (read(value), ...); }, values);
              return [handler, values = std::move(values)] {
                return internal::call_handler(handler, values);
              };
            });
  return *this;
}

}  // namespace needle
