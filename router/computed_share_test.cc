#include "router/computed_share.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

TEST(ComputedShareTest, EverythingUntilSomethingIsKnown) {
  const ComputedShare share;

  EXPECT_FALSE(share.known());
  EXPECT_EQ(share.Of(1000), 1000u);
  EXPECT_EQ(share.Of(0), 0u);
}

TEST(ComputedShareTest, IsThatOfTheTokensReported) {
  ComputedShare share;
  share.Add(100, 100);
  share.Add(300, 100);

  EXPECT_TRUE(share.known());
  // 200 of 387.5: the first report has faded a little.
  EXPECT_EQ(share.Of(1000), 516u);
}

TEST(ComputedShareTest, FollowsWhatIsReportedNow) {
  ComputedShare share;
  for (int i = 0; i < 50; ++i) share.Add(1000, 0);
  for (int i = 0; i < 16; ++i) share.Add(1000, 1000);
  EXPECT_LT(share.Of(1000), 150u);

  for (int i = 0; i < 16; ++i) share.Add(1000, 0);
  EXPECT_GT(share.Of(1000), 850u);
}

TEST(ComputedShareTest, SomeTokensAreNeverNone) {
  ComputedShare share;
  share.Add(10, 10);
  EXPECT_EQ(share.Of(1000), 1u);

  share.Add(10, 1000);
  EXPECT_EQ(share.Of(1000), 1u) << "more than all cannot be cached";
}

}  // namespace
}  // namespace baton
