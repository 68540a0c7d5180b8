// Decode workers whose KV caches differ in size: what they hold decides where a request may go, and
// where an answer without a given length ends.
#include "router/core_driver.h"
#include "router/router_core.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
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
  RequestId AskOpenEnded(uint32_t prompt_tokens) {
    NewRequest request = driver.Make(prompt_tokens, 2000);
    request.open_ended = true;
    return driver.Submit(std::move(request));
  }
  // Brings an answer without a given length to where the small worker holds no more of it.
  uint64_t FillSmall() {
    id = AskOpenEnded(4);
    const uint64_t attempt = driver.Next(small).admit().work().request();
    EXPECT_NE(attempt, 0u);
    driver.AdmittedLocal(small, attempt);
    for (uint32_t index = 0; index < 60; ++index) {
      driver.Tokens(small, attempt, index, {static_cast<TokenId>(1000 + index)}, /*epoch=*/0);
    }
    return attempt;
  }
  const Outcome& outcome() { return driver.outcomes[id]; }

  CoreDriver driver;
  WorkerId small{}, large{};
  RequestId id{};
};

TEST_F(WorkerSizesTest, AnswerWithoutALengthGoesToAnyWorkerThatHasRoom) {
  driver.Down(large);
  AskOpenEnded(4);

  EXPECT_EQ(driver.Next(small).admit().work().total_tokens_max(), 64u);
  driver.Up(large, Hello(3, kLargeBlocks));
  AskOpenEnded(4);
  EXPECT_EQ(driver.Next(large).admit().work().total_tokens_max(), 128u);
}

TEST_F(WorkerSizesTest, PromptThatFillsTheSmallOneGoesToTheLargeOne) {
  driver.Ask(10, 2);  // Takes the small one.
  driver.Ask(10, 2);  // Takes the large one.
  driver.Next(large);
  AskOpenEnded(64);

  EXPECT_EQ(driver.Next(large).admit().work().tokens_size(), 64);
}

// Which worker had less to do decides nothing about the answer.
TEST_F(WorkerSizesTest, AnswerWithoutALengthGoesOnAtALargerWorker) {
  const uint64_t attempt = FillSmall();
  driver.Finished(small, attempt, v1::FINISH_REASON_LENGTH);

  ASSERT_FALSE(outcome().finish.has_value());
  EXPECT_TRUE(driver.Idle(small)) << "it has ended the sequence by itself";
  const v1::Work work = driver.Next(large).admit().work();
  EXPECT_EQ(work.tokens_size(), 64);
  EXPECT_EQ(work.prompt_tokens(), 4u);
  EXPECT_EQ(work.total_tokens_max(), 128u);
  driver.AdmittedLocal(large, work.request());
  for (uint32_t index = 60; index < 124; ++index) {
    driver.Tokens(large, work.request(), index, {static_cast<TokenId>(1000 + index)}, 0);
  }
  driver.Finished(large, work.request(), v1::FINISH_REASON_LENGTH);

  ASSERT_TRUE(outcome().finish.has_value());
  EXPECT_TRUE(outcome().finish->status.ok());
  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(outcome().finish->finished.usage().generated_tokens(), 124u);
  EXPECT_EQ(outcome().finish->finished.retries(), 0u) << "nothing failed";
}

TEST_F(WorkerSizesTest, AnswerWithoutALengthWaitsForALargerWorkerThatIsFull) {
  for (int i = 0; i < 4; ++i) driver.Ask(100, 20);
  const uint64_t attempt = FillSmall();
  driver.Advance(seconds(50));
  driver.Finished(small, attempt, v1::FINISH_REASON_LENGTH);
  driver.Advance(seconds(50));

  EXPECT_FALSE(outcome().finish.has_value()) << "it has just begun to wait";
}

TEST_F(WorkerSizesTest, AnswerWithoutALengthEndsWhereNoReadyWorkerHoldsMore) {
  const uint64_t attempt = FillSmall();
  Drain(large);
  driver.Finished(small, attempt, v1::FINISH_REASON_LENGTH);

  ASSERT_TRUE(outcome().finish.has_value());
  EXPECT_TRUE(outcome().finish->status.ok());
  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(outcome().finish->finished.usage().generated_tokens(), 60u);
}

TEST_F(WorkerSizesTest, WorkerThatIsLostAtItsEndHadComeToIt) {
  FillSmall();
  driver.Down(large);
  driver.Down(small);

  ASSERT_TRUE(outcome().finish.has_value());
  EXPECT_TRUE(outcome().finish->status.ok()) << outcome().finish->status;
  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_LENGTH);
}

// A worker that calls it cut does not make an answer go on behind its stop token.
TEST_F(WorkerSizesTest, AnswerThatHasStoppedGoesNowhere) {
  NewRequest request = driver.Make(4, 2);
  request.open_ended = true;
  id = driver.Submit(std::move(request));
  const uint64_t attempt = driver.Next(small).admit().work().request();
  driver.AdmittedLocal(small, attempt);
  driver.Tokens(small, attempt, 0, {11, 2}, 0);
  driver.Finished(small, attempt, v1::FINISH_REASON_LENGTH);

  ASSERT_TRUE(outcome().finish.has_value());
  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_STOP);
}

TEST_F(WorkerSizesTest, EndBeforeTheWorkersLimitIsNotBelieved) {
  id = AskOpenEnded(4);
  const uint64_t attempt = driver.Next(small).admit().work().request();
  driver.AdmittedLocal(small, attempt);
  driver.Tokens(small, attempt, 0, {11}, 0);
  driver.Finished(small, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_FALSE(outcome().finish.has_value());
  EXPECT_EQ(driver.core.counters().retries[static_cast<size_t>(RetryCause::kTokensDiffer)], 1u);
}

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

// Smaller ones that go first would starve it: they may take the prefill worker that it needs.
TEST_F(WorkerSizesTest, WhatWaitsForRoomAtAReadyWorkerKeepsItsTurn) {
  for (int i = 0; i < 5; ++i) driver.Ask(100, 20);
  EXPECT_EQ(driver.core.queued_count(), 1u);
  driver.Ask(5, 8);

  EXPECT_TRUE(driver.Idle(small));
  EXPECT_EQ(driver.core.queued_count(), 2u);
}

TEST_F(WorkerSizesTest, AfterAMoveTheOtherWorkersSizeCounts) {
  id = AskOpenEnded(4);
  const WorkerId prefill = driver.AddUp(v1::ROLE_PREFILL);
  driver.AnswerProbes();
  const uint64_t attempt = driver.Next(small).admit().work().request();
  driver.AdmittedLocal(small, attempt);
  driver.Tokens(small, attempt, 0, {11, 12}, 0);
  Drain(small);
  driver.AnswerProbes();
  driver.Advance(milliseconds(20));

  const v1::Work work = driver.Next(large).admit().work();
  EXPECT_EQ(work.total_tokens_max(), 128u);
  driver.Admitted(large, work.request());
  driver.Tokens(large, work.request(), 1, {12, 13});
  for (uint32_t index = 3; index < 124; ++index) {
    driver.Tokens(large, work.request(), index, {static_cast<TokenId>(1000 + index)});
  }
  driver.Finished(large, work.request(), v1::FINISH_REASON_LENGTH);

  EXPECT_TRUE(driver.Idle(prefill));
  ASSERT_TRUE(outcome().finish.has_value());
  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_LENGTH);
}

}  // namespace
}  // namespace baton
