// Goal: the ranks of a group of GPUs get what those of the CPU get (thread_collective_test), and
// none waits for one that has given up. Method: one thread per rank, over as many GPUs as there
// are.
#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "common/base/clock.h"
#include "common/collective/collective.h"
#include "common/device/device.h"
#include "common/device/testing/required_gpus.h"

namespace baton {
namespace {

class CollectiveCudaTest : public testing::TestWithParam<uint32_t> {
 protected:
  void SetUp() override {
    auto devices = OpenDevices("cuda", GetParam());
    SKIP_WITHOUT_GPUS(GetParam(), devices.status());
    devices_ = *std::move(devices);
    std::vector<Device*> pointers;
    for (const auto& device : devices_) pointers.push_back(device.get());
    auto ranks = MakeCollectives(pointers);
    ASSERT_TRUE(ranks.ok()) << ranks.status();
    ranks_ = *std::move(ranks);
  }

  void OnEachRank(const std::function<void(Collective&, Device&)>& body) {
    std::vector<std::thread> threads;
    for (const auto& rank : ranks_) {
      threads.emplace_back([&] { body(*rank, *devices_[rank->rank()]); });
    }
    for (std::thread& thread : threads) thread.join();
  }

  std::vector<std::unique_ptr<Device>> devices_;
  std::vector<std::unique_ptr<Collective>> ranks_;  // Go before their devices.
};
INSTANTIATE_TEST_SUITE_P(Sizes, CollectiveCudaTest, testing::Values(2, 3, 4));

// Numbers in the memory of a GPU.
class Numbers {
 public:
  Numbers(Device& device, const std::vector<float>& values)
      : device_(device),
        count_(values.size()),
        memory_(device.Allocate(values.size() * sizeof(float)).value()) {
    EXPECT_TRUE(device_
                    .CopyFromHost(memory_.data(), reinterpret_cast<const std::byte*>(values.data()),
                                  memory_.bytes())
                    .ok());
  }

  TensorView view() const {
    return TensorView(memory_.data(), DType::kF32, DeviceKind::kCuda, {count_});
  }
  std::vector<float> Read() const {
    std::vector<float> values(count_);
    EXPECT_TRUE(device_
                    .CopyToHost(reinterpret_cast<std::byte*>(values.data()), memory_.data(),
                                memory_.bytes())
                    .ok());
    return values;
  }

 private:
  Device& device_;
  const size_t count_;
  DeviceMemory memory_;
};

TEST_P(CollectiveCudaTest, AllRanksHaveTheSum) {
  OnEachRank([&](Collective& rank, Device& device) {
    const uint32_t n = rank.size();
    for (uint32_t round = 0; round < 50; ++round) {
      const Numbers x(device,
                      std::vector<float>(round % 7 + 1, static_cast<float>(round + rank.rank())));
      ASSERT_TRUE(rank.AllReduceSum(x.view()).ok());
      for (const float sum : x.Read()) {
        ASSERT_EQ(sum, static_cast<float>(round * n + n * (n - 1) / 2));
      }
    }
  });
}

TEST_P(CollectiveCudaTest, ABroadcastIsOfTheFirstRank) {
  OnEachRank([&](Collective& rank, Device& device) {
    const Numbers x(device, std::vector<float>(37, static_cast<float>(rank.rank()) + 5.0f));
    ASSERT_TRUE(rank.Broadcast(x.view()).ok());
    EXPECT_EQ(x.Read(), std::vector<float>(37, 5.0f));
  });
}

// Of uneven sizes, and some of none.
TEST_P(CollectiveCudaTest, PartsComeToTheFirstRank) {
  const auto size_of = [](uint32_t rank) -> size_t { return rank % 3 == 1 ? 0 : 7 * rank + 5; };
  const auto part_of = [&](uint32_t rank) {
    return std::vector<float>(size_of(rank), static_cast<float>(rank) + 1.0f);
  };
  OnEachRank([&](Collective& rank, Device& device) {
    const Numbers own(device, part_of(rank.rank()));
    if (rank.rank() != 0) {
      ASSERT_TRUE(rank.GatherParts(own.view(), {}).ok());
      own.Read();  // Its memory may go when the part has gone.
      return;
    }
    std::vector<std::unique_ptr<Numbers>> all;
    std::vector<TensorView> parts = {own.view()};
    for (uint32_t of = 1; of < rank.size(); ++of) {
      all.push_back(std::make_unique<Numbers>(device, std::vector<float>(size_of(of))));
      parts.push_back(all.back()->view());
    }
    ASSERT_TRUE(rank.GatherParts(parts[0], parts).ok());
    for (uint32_t of = 1; of < rank.size(); ++of) {
      EXPECT_EQ(all[of - 1]->Read(), part_of(of)) << "rank " << of;
    }
  });
}

TEST_P(CollectiveCudaTest, ARankThatGivesUpLeavesNobodyWaiting) {
  OnEachRank([&](Collective& rank, Device& device) {
    if (rank.rank() == 1) return rank.Abort();
    const Numbers x(device, std::vector<float>(100, 1.0f));
    // Whether the sum was begun or not: it ends.
    static_cast<void>(rank.AllReduceSum(x.view()));
    x.Read();
  });
  OnEachRank([&](Collective& rank, Device& device) {
    const Numbers x(device, {1.0f});
    EXPECT_EQ(rank.AllReduceSum(x.view()).code(), absl::StatusCode::kAborted);
  });
}

// A rank does not queue without end for others that do not come, and where it waits it can be told.
TEST_P(CollectiveCudaTest, NorOneThatHasQueuedMuch) {
  constexpr int kTooMuch = 1000;
  std::atomic<uint32_t> unfinished = GetParam() - 1;
  OnEachRank([&](Collective& rank, Device& device) {
    if (rank.rank() == 1) {
      // Time to queue all of it, for one that does.
      const Instant end = Now() + std::chrono::milliseconds(200);
      while (unfinished > 0 && Now() < end) std::this_thread::yield();
      return rank.Abort();
    }
    const Numbers x(device, std::vector<float>(100, 1.0f));
    absl::Status status;
    for (int i = 0; i < kTooMuch && status.ok(); ++i) status = rank.AllReduceSum(x.view());
    --unfinished;
    EXPECT_EQ(status.code(), absl::StatusCode::kAborted);
    x.Read();
  });
}

TEST_P(CollectiveCudaTest, ManyMayBeQueued) {
  OnEachRank([&](Collective& rank, Device& device) {
    const Numbers x(device, {1.0f});
    for (int i = 0; i < 300; ++i) ASSERT_TRUE(rank.Broadcast(x.view()).ok());
    EXPECT_EQ(x.Read(), std::vector<float>{1.0f});
  });
}

}  // namespace
}  // namespace baton
