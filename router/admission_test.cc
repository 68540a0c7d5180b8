#include "router/admission.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

TEST(AdmissionQueueTest, HigherPriorityFirstThenByArrival) {
  AdmissionQueue queue({});
  queue.Push(RequestId{1}, /*priority=*/0, /*arrival=*/1, 10);
  queue.Push(RequestId{2}, 1, 2, 10);
  queue.Push(RequestId{3}, 1, 3, 10);

  EXPECT_EQ(queue.front(), RequestId{2});
  queue.Remove(1, 2);
  EXPECT_EQ(queue.front(), RequestId{3});
  queue.Remove(1, 3);
  EXPECT_EQ(queue.front(), RequestId{1});
  queue.Remove(0, 1);
  EXPECT_EQ(queue.front(), std::nullopt);
}

TEST(AdmissionQueueTest, WhoIsBehindAPlace) {
  AdmissionQueue queue({});
  queue.Push(RequestId{1}, /*priority=*/0, /*arrival=*/1, 10);
  queue.Push(RequestId{2}, 1, 2, 10);
  queue.Push(RequestId{3}, 0, 3, 10);

  EXPECT_EQ(queue.After(1, 2), RequestId{1});
  EXPECT_EQ(queue.After(0, 1), RequestId{3});
  EXPECT_EQ(queue.After(0, 2), RequestId{3}) << "nobody is there";
  EXPECT_EQ(queue.After(0, 3), std::nullopt);
}

TEST(AdmissionQueueTest, WhoReturnsIsAheadOfLaterOnes) {
  AdmissionQueue queue({});
  queue.Push(RequestId{2}, 0, 2, 10);
  queue.Push(RequestId{1}, 0, 1, 10);

  EXPECT_EQ(queue.front(), RequestId{1});
}

TEST(AdmissionQueueTest, IsFullByRequests) {
  AdmissionQueue queue({.requests = 1, .tokens = 100});
  EXPECT_TRUE(queue.CheckRoom(10).ok());
  queue.Push(RequestId{1}, 0, 1, 10);

  EXPECT_TRUE(absl::IsResourceExhausted(queue.CheckRoom(1)));
}

TEST(AdmissionQueueTest, IsFullByTokensButOneLargeRequestMayWaitAlone) {
  AdmissionQueue queue({.requests = 10, .tokens = 100});
  EXPECT_TRUE(queue.CheckRoom(1000).ok());
  queue.Push(RequestId{1}, 0, 1, 90);

  EXPECT_TRUE(queue.CheckRoom(10).ok());
  EXPECT_TRUE(absl::IsResourceExhausted(queue.CheckRoom(11)));
  queue.Remove(0, 1);
  EXPECT_EQ(queue.tokens(), 0u);
}

TEST(AdmissionQueueTest, CountsTheTokensAheadOfAPriority) {
  AdmissionQueue queue({});
  queue.Push(RequestId{1}, -1, 1, 1);
  queue.Push(RequestId{2}, 0, 2, 10);
  queue.Push(RequestId{3}, 5, 3, 100);

  EXPECT_EQ(queue.TokensAhead(-1), 111u);
  EXPECT_EQ(queue.TokensAhead(0), 110u);
  EXPECT_EQ(queue.TokensAhead(1), 100u);
  EXPECT_EQ(queue.TokensAhead(6), 0u);
}

}  // namespace
}  // namespace baton
