#include "common/rpc/backoff.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

using std::chrono::milliseconds;

TEST(BackoffTest, WaitsDoubleUpToTheCapAndStayInTheUpperHalf) {
  for (const uint64_t seed : {1, 2, 3}) {
    Backoff backoff(milliseconds(100), milliseconds(1000), seed);
    for (const int whole_ms : {100, 200, 400, 800, 1000, 1000}) {
      const Duration wait = backoff.Next();
      EXPECT_GE(wait, milliseconds(whole_ms) / 2);
      EXPECT_LE(wait, milliseconds(whole_ms));
    }
    backoff.Reset();
    EXPECT_LE(backoff.Next(), milliseconds(100));
  }
}

TEST(BackoffTest, SeedDecidesTheWaits) {
  Backoff a(milliseconds(100), milliseconds(1000), 7);
  Backoff b(milliseconds(100), milliseconds(1000), 7);
  Backoff c(milliseconds(100), milliseconds(1000), 8);

  const Duration first = a.Next();

  EXPECT_EQ(first, b.Next());
  EXPECT_NE(first, c.Next());
}

}  // namespace
}  // namespace baton
