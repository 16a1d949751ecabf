#include "needle/server/access.h"

#include <gtest/gtest.h>

#include "needle/server/api_error.h"

namespace needle {
namespace {

int status(const HttpHeaders& headers, const AccessOptions& options = {}, bool open = false) {
  try {
    check_access({.method = "GET", .path = "/", .headers = headers}, options, open);
  } catch (const ApiError& error) {
    return error.status();
  }
  return 200;
}

TEST(AccessTest, OnlyLoopbackNamesAreAnsweredUnlessNamed) {
  EXPECT_EQ(status({{"host", "localhost:7860"}}), 200);
  EXPECT_EQ(status({{"Host", "127.0.0.1"}}), 200);
  EXPECT_EQ(status({{"Host", "[::1]:80"}}), 200);
  for (const std::string host : {"", "evil.example", "127.0.0.1.evil.example",
                                 "localhost.evil.example", "localhost, evil.example", "[::1"}) {
    EXPECT_EQ(status({{"Host", host}}), 403) << host;
  }
  EXPECT_EQ(status({{"Host", "box.lan:80"}}, {.allowed_hosts = {"box.lan"}}), 200);
}

TEST(AccessTest, PagesOfOtherOriginsAreTurnedAway) {
  EXPECT_EQ(status({{"Host", "localhost:1"}, {"Origin", "http://localhost:1"}}), 200);
  EXPECT_EQ(status({{"Host", "localhost:1"}, {"Origin", "http://localhost:2"}}), 403);
  EXPECT_EQ(status({{"Host", "localhost:1"}, {"Origin", "null"}}), 403);
  const AccessOptions options{.cors_origins = {"https://app.example"}};
  EXPECT_EQ(status({{"Host", "localhost"}, {"Origin", "https://app.example"}}, options), 200);
}

TEST(AccessTest, TheKeyMustBeWhole) {
  const AccessOptions options{.api_key = "secret"};
  const auto with = [&](const std::string& value) {
    return status({{"Host", "localhost"}, {"Authorization", value}}, options);
  };
  EXPECT_EQ(with("Bearer secret"), 200);
  for (const std::string value : {"", "Bearer ", "Bearer secre", "Bearer secretsecret", "secret"}) {
    EXPECT_EQ(with(value), 401) << value;
  }
  EXPECT_EQ(status({{"Host", "localhost"}}, options, true), 200);
}

}  // namespace
}  // namespace needle
