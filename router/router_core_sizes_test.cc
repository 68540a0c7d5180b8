// Decode workers whose KV caches differ in size: what they hold decides where a request may go.
#include "router/core_driver.h"
#include "router/router_core.h"

namespace baton {
namespace {

using std::chrono::seconds;

// A small decode worker holds 64 tokens, a large one 128. Both compute prompts themselves.
class WorkerSizesTest : public testing::Test {
 protected:
  static constexpr uint32_t kSmallBlocks = 4;
  static constexpr uint32_t kLargeBlocks = 8;

  WorkerSizesTest() {
    small = Add(1, kSmallBlocks);
    large = Add(2, kLargeBlocks);
  }
  static v1::WorkerHello Hello(uint64_t incarnation, uint32_t blocks) {
    v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, incarnation, /*local_prefill=*/true);
    hello.set_blocks_total(blocks);
    hello.set_sequences_max(4);
    return hello;
  }
  WorkerId Add(uint64_t incarnation, uint32_t blocks) {
    const WorkerId worker = driver.core.AddWorker(absl::StrCat("d", incarnation), v1::ROLE_DECODE);
    driver.Up(worker, Hello(incarnation, blocks));
    return worker;
  }
  void Drain(WorkerId worker) {
    v1::Event event;
    event.mutable_draining();
    driver.Event(worker, event);
  }
  const Outcome& outcome() { return driver.outcomes[id]; }

  CoreDriver driver;
  WorkerId small{}, large{};
  RequestId id{};
};

TEST_F(WorkerSizesTest, GivenLengthIsNeverCut) {
  driver.Down(large);
  id = driver.Ask(4, 100);
  driver.Advance(seconds(30));

  EXPECT_TRUE(driver.Idle(small));
  EXPECT_FALSE(outcome().finish.has_value());
}

TEST_F(WorkerSizesTest, WhatOnlyALostWorkerHoldsHoldsUpNobody) {
  driver.Down(large);
  driver.Ask(100, 20);
  driver.Ask(5, 8);
  driver.Ask(6, 8);

  EXPECT_EQ(driver.Next(small).admit().work().prompt_tokens(), 5u);
  EXPECT_EQ(driver.Next(small).admit().work().prompt_tokens(), 6u);
  EXPECT_EQ(driver.core.queued_count(), 1u);
  driver.Up(large, Hello(3, kLargeBlocks));
  EXPECT_EQ(driver.Next(large).admit().work().prompt_tokens(), 100u) << "it was still the first";
}

TEST_F(WorkerSizesTest, WhatOnlyADrainingWorkerHoldsHoldsUpNobody) {
  Drain(large);
  driver.Ask(100, 20);
  driver.Ask(5, 8);

  EXPECT_EQ(driver.Next(small).admit().work().prompt_tokens(), 5u);
}

TEST_F(WorkerSizesTest, WhatWaitsForRoomAtAReadyWorkerKeepsItsTurn) {
  for (int i = 0; i < 5; ++i) driver.Ask(100, 20);
  EXPECT_EQ(driver.core.queued_count(), 1u);
  driver.Ask(5, 8);

  EXPECT_TRUE(driver.Idle(small));
  EXPECT_EQ(driver.core.queued_count(), 2u);
}

}  // namespace
}  // namespace baton
