// What /openapi.json tells is what the server does: the same routes, one by one.
#include <algorithm>
#include <set>
#include <string>
#include <vector>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "needle/core/json.h"
#include "needle/server/playground.h"
#include "needle/server/service.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

using ::testing::AllOf;
using ::testing::Contains;
using ::testing::Not;
using ::testing::StartsWith;

class OpenApiTest : public ::testing::Test {
 protected:
  static Json document(Service& service) {
    return Json::parse(
        service.handle({.method = "GET", .path = "/openapi.json", .headers = {}, .body = ""}).body);
  }
  static std::set<std::string> described(const Json& document) {
    std::set<std::string> routes;
    for (const auto& [path, methods] : document["paths"].items()) {
      for (const auto& [method, description] : methods.items()) {
        std::string name = method;
        std::ranges::transform(name, name.begin(), [](char c) { return c & ~0x20; });
        routes.insert(name + " " + path);
      }
    }
    return routes;
  }
  static std::set<std::string> registered(const Service& service) {
    std::set<std::string> routes;
    for (const RouteName& route : service.routes()) {
      routes.insert(std::string(route.method) + " " + std::string(route.path));
    }
    return routes;
  }

  test::TemporaryFolder folder_;
  ModelStore models_{{}, {}, {}};
  Playground playground_{{.folder = folder_.path() / "workspace",
                          .released = {},
                          .train_program = {},
                          .export_program = {}}};
  Service service_{models_, {.extension = &playground_}};
};

TEST_F(OpenApiTest, DescribesEveryRouteAndNoOther) {
  const auto routes = registered(service_);
  EXPECT_EQ(described(document(service_)), routes);
  EXPECT_THAT(routes, AllOf(Contains("POST /v1/chat/completions"), Contains("GET /{file}"),
                            Contains("GET /playground/jobs/{job}/rows/{first}")));
}

TEST_F(OpenApiTest, DescribesNoPlaygroundWhereThereIsNone) {
  Service bare(models_, {});
  const auto routes = described(document(bare));
  EXPECT_EQ(routes, registered(bare));
  EXPECT_THAT(routes, Not(Contains(StartsWith("GET /playground"))));
}

// The names in a path are declared, what is open is said to be, and what is posted has a body.
TEST_F(OpenApiTest, EachRouteIsDescribedAsItIs) {
  const Json text = document(service_);
  for (const RouteName& route : service_.routes()) {
    const std::string path(route.path);
    const Json& methods = text["paths"][path];
    const Json& description = methods[route.method == "GET" ? "get" : "post"];
    EXPECT_EQ(description.contains("security"), route.open) << path;
    EXPECT_EQ(description.contains("requestBody"), route.method == "POST") << path;
    EXPECT_FALSE(description.value("summary", "").empty()) << path;
    std::set<std::string> declared;
    for (Json parameter : description.value("parameters", Json::array())) {
      if (parameter.contains("$ref")) {
        const std::string name = parameter["$ref"].get<std::string>().substr(
            std::string("#/components/parameters/").size());
        parameter = text["components"]["parameters"][name];
      }
      if (parameter["in"] == "path") {
        declared.insert(parameter["name"].get<std::string>());
      }
    }
    std::set<std::string> named;
    for (std::size_t at = 0; (at = path.find('{', at)) != std::string::npos; ++at) {
      named.insert(path.substr(at + 1, path.find('}', at) - at - 1));
    }
    EXPECT_EQ(declared, named) << path;
  }
}

}  // namespace
}  // namespace needle
