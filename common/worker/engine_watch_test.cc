#include "common/worker/engine_watch.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

using std::chrono::seconds;

constexpr Instant kStart{seconds(1000)};

TEST(EngineWatchTest, RoundThatDoesNotEndInTimeIsAHangUntilItEnds) {
  EngineWatch watch(seconds(10), kStart);

  EXPECT_TRUE(watch.Check(kStart + seconds(10)).ok());
  EXPECT_EQ(watch.Check(kStart + seconds(11)).code(), absl::StatusCode::kUnavailable);

  watch.RoundEnded(kStart + seconds(12));

  EXPECT_TRUE(watch.Check(kStart + seconds(22)).ok());
  EXPECT_FALSE(watch.Check(kStart + seconds(23)).ok());
}

TEST(EngineWatchTest, ZeroAllowsAnyTime) {
  const EngineWatch watch(Duration::zero(), kStart);

  EXPECT_TRUE(watch.Check(kStart + std::chrono::hours(1000)).ok());
}

TEST(EngineWatchTest, BrokenIsForGoodWithItsFirstReason) {
  EngineWatch watch(seconds(10), kStart);

  watch.Break(absl::UnavailableError("the GPU is gone"));
  watch.Break(absl::UnavailableError("again"));
  watch.RoundEnded(kStart + seconds(1));

  EXPECT_EQ(watch.Check(kStart + seconds(1)), absl::UnavailableError("the GPU is gone"));
}

}  // namespace
}  // namespace baton
