#include "common/kv_transfer/staging_choice.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>

#include "common/device/testing/guarded_device.h"
#include "common/kv_transfer/testing/handoff_rig.h"
#include "common/transport/testing/inproc_transport.h"

namespace baton {
namespace {

using testing::HasSubstr;

constexpr size_t kBytes = size_t{4} << 20;

// What becomes of the messages that a worker sends to itself.
struct Fate {
  int intact = 0;  // So many of them first.
  bool corrupts = false;
  bool never_lands = false;
  bool breaks = false;
};

class FatedDelivery final : public DeliveryPolicy {
 public:
  explicit FatedDelivery(const Fate& fate) : fate_(fate) {}
  uint64_t HeaderDelay(const std::string&, const std::string&) override { return 3; }
  uint64_t PayloadDelay(const std::string&, const std::string&) override {
    return fate_.never_lands ? kNeverDelivered : 5;
  }
  bool Breaks(const std::string&, const std::string&) override { return fate_.breaks; }
  bool Corrupts(const std::string&, const std::string&) override {
    return fate_.corrupts && ++payloads_ > fate_.intact;
  }

 private:
  const Fate fate_;
  int payloads_ = 0;
};

class StagingChoiceTest : public testing::Test {
 protected:
  // Over a transport that reaches the device's memory.
  absl::StatusOr<ChosenStaging> Choose(const Fate& fate, std::optional<StagingMemory> wanted = {},
                                       size_t eager_bytes_max = 0) {
    InprocNetwork network(std::make_unique<FatedDelivery>(fate));
    network.CopyWith(GuardedDevice::CopyAnywhere, eager_bytes_max);
    const auto transport = network.Open("worker");
    absl::StatusOr<ChosenStaging> chosen =
        ChooseStaging(*transport, *rig_.arena, kBytes, wanted, std::chrono::milliseconds(100));
    EXPECT_TRUE(!chosen.ok() ||
                chosen->staging.receives->memory() == chosen->staging.sends->memory());
    return chosen;
  }
  // It was not taken, and nobody insisted.
  void ExpectPinned(const Fate& fate, const std::string& reason) {
    const absl::StatusOr<ChosenStaging> chosen = Choose(fate);
    ASSERT_TRUE(chosen.ok()) << chosen.status();
    EXPECT_EQ(chosen->staging.sends->memory(), StagingMemory::kPinned);
    EXPECT_THAT(chosen->reason, HasSubstr(reason));
    EXPECT_FALSE(Choose(fate, StagingMemory::kDevice).ok());
  }

  ArenaRig rig_{SmallLayout(), 4, Memory::kGuarded};
};

TEST_F(StagingChoiceTest, MemoryOfTheGpuIsTakenIfAMessageArrives) {
  for (const size_t eager_bytes_max : {size_t{0}, kBytes}) {
    const absl::StatusOr<ChosenStaging> chosen = Choose({}, std::nullopt, eager_bytes_max);
    ASSERT_TRUE(chosen.ok()) << chosen.status();
    EXPECT_EQ(chosen->staging.sends->memory(), StagingMemory::kDevice);
    EXPECT_EQ(chosen->reason, "");
  }
}

TEST_F(StagingChoiceTest, OtherwiseItIsPinnedAndSaysWhy) {
  ExpectPinned({.corrupts = true}, "damaged");
  ExpectPinned({.never_lands = true}, "did not arrive");
  ExpectPinned({.breaks = true}, "");
}

TEST_F(StagingChoiceTest, PinnedMemoryCanBeAskedFor) {
  const absl::StatusOr<ChosenStaging> chosen = Choose({}, StagingMemory::kPinned);

  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ(chosen->staging.sends->memory(), StagingMemory::kPinned);
  EXPECT_EQ(chosen->reason, "");
}

TEST_F(StagingChoiceTest, ATransportOfTheHostsMemoryAloneIsNotTried) {
  InprocNetwork network;
  const auto transport = network.Open("worker");

  const absl::StatusOr<ChosenStaging> chosen =
      ChooseStaging(*transport, *rig_.arena, kBytes, std::nullopt);

  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ(chosen->staging.sends->memory(), StagingMemory::kPinned);
  EXPECT_THAT(chosen->reason, HasSubstr("host only"));
}

TEST_F(StagingChoiceTest, EachOfSeveralGpusIsTried) {
  GuardedDevice first, second;
  Device* const both[] = {&first, &second};
  const auto arena = KvArena::Create(both, SmallLayout(), 4).value();
  for (const int intact : {0, 1, 2}) {
    InprocNetwork network(
        std::make_unique<FatedDelivery>(Fate{.intact = intact, .corrupts = true}));
    network.CopyWith(GuardedDevice::CopyAnywhere, 0);
    const auto transport = network.Open("worker");

    const absl::StatusOr<ChosenStaging> chosen =
        ChooseStaging(*transport, *arena, kBytes, std::nullopt);

    ASSERT_TRUE(chosen.ok()) << chosen.status();
    EXPECT_EQ(chosen->staging.sends->memory(),
              intact == 2 ? StagingMemory::kDevice : StagingMemory::kPinned);
  }
}

TEST_F(StagingChoiceTest, OnTheCpuNothingIsStaged) {
  ArenaRig host(SmallLayout(), 4);
  InprocNetwork network;
  const auto transport = network.Open("worker");

  const absl::StatusOr<ChosenStaging> chosen =
      ChooseStaging(*transport, *host.arena, kBytes, StagingMemory::kDevice);

  ASSERT_TRUE(chosen.ok()) << chosen.status();
  EXPECT_EQ(chosen->staging.sends->memory(), StagingMemory::kNone);
}

}  // namespace
}  // namespace baton
