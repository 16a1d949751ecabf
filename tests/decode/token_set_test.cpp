#include "needle/decode/token_set.h"

#include <vector>

#include <gmock/gmock.h>

namespace needle {
namespace {

using ::testing::ElementsAre;

TEST(TokenSetTest, HoldsWhatWasInserted) {
  TokenSet set(130);
  EXPECT_EQ(set.count(), 0);
  for (const TokenId id : {0, 63, 64, 129, 64}) {
    set.insert(id);
  }
  EXPECT_TRUE(set.contains(63));
  EXPECT_FALSE(set.contains(65));
  EXPECT_EQ(set.count(), 4);
  set.erase(63);
  std::vector<TokenId> seen;
  set.for_each([&](TokenId id) { seen.push_back(id); });
  EXPECT_THAT(seen, ElementsAre(0, 64, 129));
  const TokenSet copy = set;
  set.clear();
  EXPECT_EQ(set.count(), 0);
  EXPECT_NE(set, copy);
  EXPECT_EQ(set, TokenSet(130));
}

}  // namespace
}  // namespace needle
