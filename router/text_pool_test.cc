#include "router/text_pool.h"

#include <gtest/gtest.h>

#include <atomic>

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
  HeldPool held({.threads = 1, .bytes_max = 10});

  EXPECT_TRUE(held.pool.Run(11, [] {}).ok());
  EXPECT_EQ(held.pool.Run(1, [] {}).code(), absl::StatusCode::kResourceExhausted);
  held.Release();
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
