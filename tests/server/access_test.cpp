#include "needle/server/access.h"

#include <algorithm>
#include <chrono>
#include <string>

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

TEST(AccessTest, ComparingTakesAsLongWhereverTheKeysDiffer) {
  const std::string key(1 << 20, 'k');
  std::string early = key;
  early.front() = 'x';
  std::string late = key;
  late.back() = 'x';
  const auto time_of = [&](const std::string& given) {
    double least = 1e9;
    for (int i = 0; i < 9; ++i) {
      const auto start = std::chrono::steady_clock::now();
      EXPECT_FALSE(equal_in_constant_time(given, key));
      least = std::min(
          least, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return least;
  };
  const double early_time = time_of(early);  // a comparison that stops is a million times faster
  const double late_time = time_of(late);
  EXPECT_LT(late_time, 4 * early_time);
  EXPECT_LT(early_time, 4 * late_time);
}

}  // namespace
}  // namespace needle
