#include "needle/server/upload_store.h"

#include <functional>

#include <gtest/gtest.h>

#include "needle/core/file.h"
#include "needle/server/api_error.h"

#include "tests/support/golden.h"

namespace needle {
namespace {

int status_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ApiError& error) {
    return error.status();
  }
  return 200;
}

class UploadStoreTest : public ::testing::Test {
 protected:
  std::size_t files() const {
    std::size_t count = 0;
    for ([[maybe_unused]] const auto& item : std::filesystem::directory_iterator(folder_.path())) {
      ++count;
    }
    return count;
  }
  test::TemporaryFolder folder_;
  UploadStore store_{
      folder_.path(),
      {.model_bytes = 100, .rows_bytes = 10, .at_once = 2, .idle = std::chrono::seconds(600)}};
};

TEST_F(UploadStoreTest, PiecesBecomeTheFile) {
  const std::string id = store_.begin("model", 9);
  EXPECT_EQ(store_.add(id, 0, "abcd"), 4U);
  EXPECT_EQ(status_of([&] { store_.take(id, "model"); }), 409);   // not all there
  EXPECT_EQ(status_of([&] { store_.add(id, 0, "abcd"); }), 409);  // sent twice
  EXPECT_EQ(status_of([&] { store_.add(id, 5, "f"); }), 409);     // one left out
  EXPECT_EQ(store_.add(id, 4, "efghi"), 9U);
  EXPECT_EQ(status_of([&] { store_.take(id, "rows"); }), 409);
  EXPECT_EQ(read_file(store_.take(id, "model")), "abcdefghi");
  EXPECT_EQ(status_of([&] { store_.add(id, 9, "j"); }), 404);
}

TEST_F(UploadStoreTest, NothingGrowsBeyondWhatIsAllowed) {
  EXPECT_EQ(status_of([&] { store_.begin("model", 101); }), 413);
  EXPECT_EQ(status_of([&] { store_.begin("rows", 11); }), 413);
  EXPECT_EQ(status_of([&] { store_.begin("rows", 0); }), 400);
  const std::string id = store_.begin("rows", 3);
  EXPECT_EQ(status_of([&] { store_.add(id, 0, "abcd"); }), 413);  // more than announced
  store_.begin("rows", 3);
  EXPECT_EQ(status_of([&] { store_.begin("rows", 3); }), 429);
  EXPECT_EQ(status_of([&] { store_.add("../../etc/passwd", 0, "x"); }), 404);
}

TEST_F(UploadStoreTest, WhatIsNeverFinishedIsRemoved) {
  {
    UploadStore store(folder_.path(), {.idle = std::chrono::seconds(0)});
    const std::string left = store.begin("rows", 5);
    store.add(left, 0, "abc");
    EXPECT_EQ(files(), 1U);
    const std::string next = store.begin("rows", 5);  // gives up the idle one
    EXPECT_EQ(files(), 0U);
    store.add(next, 0, "abc");
    EXPECT_EQ(files(), 1U);
  }
  EXPECT_EQ(files(), 0U);
  write_file_atomic(folder_ / "upload-1-of-a-killed-server", "x");
  write_file_atomic(folder_ / "other", "x");
  store_.begin("rows", 5);
  EXPECT_EQ(files(), 1U);
}

}  // namespace
}  // namespace needle
