#include "router/text_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <string>

#include "absl/synchronization/notification.h"

namespace baton {
namespace {

// Occupies the only thread until Release.
class HeldPool {
 public:
  explicit HeldPool(const TextPoolOptions& options) : pool(options) {
    absl::Notification held;
    EXPECT_TRUE(pool.Run(0,
                         [this, &held] {
                           held.Notify();
                           release_.WaitForNotification();
                         })
                    .ok());
    held.WaitForNotification();
  }
  void Release() { release_.Notify(); }

 private:
  absl::Notification release_;

 public:
  TextPool pool;
};

TEST(TextPoolTest, RefusesWhatIsTooMuchAndRunsTheRest) {
  std::atomic<int> ran = 0;
  absl::Status third;
  {
    HeldPool held({.threads = 1, .jobs_max = 2});
    EXPECT_TRUE(held.pool.Run(1, [&ran] { ++ran; }).ok());
    EXPECT_TRUE(held.pool.Run(1, [&ran] { ++ran; }).ok());

    third = held.pool.Run(1, [&ran] { ++ran; });
    held.Release();
  }

  EXPECT_EQ(third.code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ran, 2) << "what waits is run before the end";
}

TEST(TextPoolTest, BytesThatWaitAreBoundedAndOneTextAlwaysFits) {
  HeldPool held({.threads = 1, .short_bytes_max = 20, .bytes_max = 10});

  EXPECT_TRUE(held.pool.Run(11, [] {}).ok());
  EXPECT_EQ(held.pool.Run(1, [] {}).code(), absl::StatusCode::kResourceExhausted);
  held.Release();
}

TEST(TextPoolTest, ShortTextsDoNotWaitForLongOnes) {
  absl::Notification release;
  absl::Notification held;
  TextPool pool({.threads = 2, .short_bytes_max = 10, .bytes_max = 100});
  EXPECT_TRUE(pool.Run(50,
                       [&release, &held] {
                         held.Notify();
                         release.WaitForNotification();
                       })
                  .ok());
  held.WaitForNotification();
  while (pool.Run(50, [&release] { release.WaitForNotification(); }).ok()) {
  }

  absl::Notification ran;
  EXPECT_TRUE(pool.Run(10, [&ran] { ran.Notify(); }).ok()) << "long texts take none of its room";

  EXPECT_TRUE(ran.WaitForNotificationWithTimeout(absl::Seconds(20)));
  release.Notify();
}

TEST(TextPoolTest, OneThreadTakesAllInTheOrderOfTheCalls) {
  std::string order;
  {
    HeldPool held({.threads = 1, .short_bytes_max = 10});
    for (const uint64_t bytes : {50, 5, 60, 6}) {
      EXPECT_TRUE(
          held.pool.Run(bytes, [&order, bytes] { order += std::to_string(bytes) + " "; }).ok());
    }
    held.Release();
  }

  EXPECT_EQ(order, "50 5 60 6 ");
}

TEST(TextPoolTest, JobsRunSideBySide) {
  TextPool pool({.threads = 2});
  absl::Notification first;
  absl::Notification second;

  ASSERT_TRUE(pool.Run(1,
                       [&] {
                         second.WaitForNotification();
                         first.Notify();
                       })
                  .ok());
  ASSERT_TRUE(pool.Run(1, [&] { second.Notify(); }).ok());

  EXPECT_TRUE(first.WaitForNotificationWithTimeout(absl::Seconds(20)));
}

}  // namespace
}  // namespace baton
