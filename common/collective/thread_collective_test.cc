#include "common/collective/thread_collective.h"

#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <random>
#include <thread>
#include <vector>

namespace baton {
namespace {

using Ranks = std::vector<std::unique_ptr<Collective>>;

// Runs `body` once per rank, each in a thread of its own, and waits for all.
void OnEachRank(const Ranks& ranks, const std::function<void(Collective&)>& body) {
  std::vector<std::thread> threads;
  for (const auto& rank : ranks) threads.emplace_back([&] { body(*rank); });
  for (std::thread& thread : threads) thread.join();
}

TensorView ViewOf(std::vector<float>& values) {
  return TensorView(reinterpret_cast<std::byte*>(values.data()), DType::kF32, DeviceKind::kCpu,
                    {values.size()});
}

class ThreadCollectiveTest : public testing::TestWithParam<uint32_t> {};
INSTANTIATE_TEST_SUITE_P(Sizes, ThreadCollectiveTest, testing::Values(1, 2, 3, 4, 8));

// Numbers of very different sizes, so that another order of the sum would give other bits.
TEST_P(ThreadCollectiveTest, AllRanksHaveTheSumInTheOrderOfRanks) {
  const Ranks ranks = MakeThreadCollectives(GetParam());
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  for (size_t count : {0, 1, 15, 16, 17, 100, 255, 257, 5000}) {
    std::vector<std::vector<float>> values(ranks.size(), std::vector<float>(count));
    std::vector<float> expected(count);
    for (size_t rank = 0; rank < ranks.size(); ++rank) {
      for (size_t i = 0; i < count; ++i) {
        values[rank][i] = std::exp(8 * normal(random)) * normal(random);
        expected[i] = rank == 0 ? values[rank][i] : expected[i] + values[rank][i];
      }
    }

    OnEachRank(ranks, [&](Collective& rank) {
      EXPECT_TRUE(rank.AllReduceSum(ViewOf(values[rank.rank()])).ok());
    });

    for (const std::vector<float>& value : values) EXPECT_EQ(value, expected) << count;
  }
}

TEST_P(ThreadCollectiveTest, ABroadcastIsOfTheFirstRank) {
  const Ranks ranks = MakeThreadCollectives(GetParam());

  OnEachRank(ranks, [&](Collective& rank) {
    std::vector<float> x(37, static_cast<float>(rank.rank()) + 5.0f);
    ASSERT_TRUE(rank.Broadcast(ViewOf(x)).ok());
    EXPECT_EQ(x, std::vector<float>(37, 5.0f));
  });
}

// Of uneven sizes, and some of none.
TEST_P(ThreadCollectiveTest, PartsComeToTheFirstRank) {
  const Ranks ranks = MakeThreadCollectives(GetParam());
  const auto size_of = [](uint32_t rank) -> size_t { return rank % 3 == 1 ? 0 : 7 * rank + 5; };

  OnEachRank(ranks, [&](Collective& rank) {
    for (int round = 0; round < 100; ++round) {
      const auto number = [&](uint32_t of) { return static_cast<float>(1000 * round + of); };
      std::vector<float> own(size_of(rank.rank()), number(rank.rank()));
      if (rank.rank() != 0) {
        ASSERT_TRUE(rank.GatherParts(ViewOf(own), {}).ok());
        continue;
      }
      std::vector<std::vector<float>> all = {own};
      for (uint32_t of = 1; of < rank.size(); ++of) all.emplace_back(size_of(of));
      std::vector<TensorView> parts;
      for (std::vector<float>& values : all) parts.push_back(ViewOf(values));
      ASSERT_TRUE(rank.GatherParts(parts[0], parts).ok());
      for (uint32_t of = 0; of < rank.size(); ++of) {
        ASSERT_EQ(all[of], std::vector<float>(size_of(of), number(of))) << "rank " << of;
      }
    }
  });
}

TEST_P(ThreadCollectiveTest, RoundsDoNotMix) {
  const Ranks ranks = MakeThreadCollectives(GetParam());

  OnEachRank(ranks, [&](Collective& rank) {
    for (int round = 0; round < 500; ++round) {
      std::vector<float> x(static_cast<size_t>(round % 7) + 1,
                           static_cast<float>(round) + static_cast<float>(rank.rank()));
      ASSERT_TRUE(rank.AllReduceSum(ViewOf(x)).ok());
      const uint32_t n = rank.size();
      for (float sum : x) ASSERT_EQ(sum, static_cast<float>(round * n + n * (n - 1) / 2));
    }
  });
}

TEST(ThreadCollectiveAbortTest, ARankThatGivesUpLeavesNobodyWaiting) {
  const Ranks ranks = MakeThreadCollectives(3);

  OnEachRank(ranks, [&](Collective& rank) {
    std::vector<float> x(100, 1.0f);
    if (rank.rank() == 1) return rank.Abort();
    EXPECT_EQ(rank.AllReduceSum(ViewOf(x)).code(), absl::StatusCode::kAborted);
    EXPECT_EQ(rank.AllReduceSum(ViewOf(x)).code(), absl::StatusCode::kAborted);
  });
}

TEST(MakeCollectivesTest, TheCpuHasARankPerDevice) {
  const std::unique_ptr<Device> devices[] = {MakeHostDevice(), MakeHostDevice()};
  Device* const both[] = {devices[0].get(), devices[1].get()};

  const auto ranks = MakeCollectives(both).value();

  ASSERT_EQ(ranks.size(), 2u);
  EXPECT_EQ(ranks[1]->rank(), 1u);
  EXPECT_EQ(ranks[1]->size(), 2u);
  EXPECT_EQ(MakeCollectives({}).status().code(), absl::StatusCode::kInvalidArgument);
}

}  // namespace
}  // namespace baton
