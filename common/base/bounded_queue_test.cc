#include "common/base/bounded_queue.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <thread>

namespace baton {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

TEST(BoundedQueueTest, RefusesWhenFullAndLeavesTheItem) {
  BoundedQueue<std::unique_ptr<int>> queue(1);
  ASSERT_TRUE(queue.TryPush(std::make_unique<int>(1)));
  auto second = std::make_unique<int>(2);

  EXPECT_FALSE(queue.TryPush(std::move(second)));

  EXPECT_NE(second, nullptr);
}

TEST(BoundedQueueTest, ItemOfLesserWeightLeavesRoom) {
  BoundedQueue<int> queue(2);
  ASSERT_TRUE(queue.TryPush(1, /*room=*/1));

  EXPECT_FALSE(queue.TryPush(2, /*room=*/1));
  EXPECT_TRUE(queue.TryPush(3));
  EXPECT_FALSE(queue.TryPush(4, /*room=*/8)) << "beyond the capacity";
}

TEST(BoundedQueueTest, TakesInOrder) {
  BoundedQueue<int> queue(8);
  ASSERT_TRUE(queue.TryPush(1));
  ASSERT_TRUE(queue.TryPush(2));

  EXPECT_THAT(queue.TakeAll(), ElementsAre(1, 2));
  EXPECT_THAT(queue.TakeAll(), IsEmpty());
}

TEST(BoundedQueueTest, ClosedQueueRefusesButStillGivesWhatItHolds) {
  BoundedQueue<int> queue(8);
  ASSERT_TRUE(queue.TryPush(1));

  queue.Close();

  EXPECT_FALSE(queue.TryPush(2));
  EXPECT_THAT(queue.WaitAll(absl::InfiniteDuration()), ElementsAre(1));
}

TEST(BoundedQueueTest, WaitEndsWithItsTime) {
  BoundedQueue<int> queue(8);

  EXPECT_THAT(queue.WaitAll(absl::Milliseconds(1)), IsEmpty());
}

TEST(BoundedQueueTest, EveryItemOfEveryProducerArrivesOnce) {
  constexpr int kProducers = 4;
  constexpr int kItems = 1000;
  BoundedQueue<int> queue(kProducers * kItems);
  std::vector<std::thread> producers;
  for (int p = 0; p < kProducers; ++p) {
    producers.emplace_back([&queue, p] {
      for (int i = 0; i < kItems; ++i) ASSERT_TRUE(queue.TryPush(p * kItems + i));
    });
  }

  std::vector<int> seen(kProducers * kItems, 0);
  int count = 0;
  while (count < kProducers * kItems) {
    for (int item : queue.WaitAll(absl::Seconds(10))) {
      ++seen[static_cast<size_t>(item)];
      ++count;
    }
  }

  for (std::thread& producer : producers) producer.join();
  EXPECT_THAT(seen, testing::Each(1));
}

}  // namespace
}  // namespace baton
