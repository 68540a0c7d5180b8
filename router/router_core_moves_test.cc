// Running requests that leave a decode worker which drains.
#include "router/core_driver.h"
#include "router/router_core.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using ::testing::ElementsAre;

// A request runs on `from`, which then drains; `to` is there.
class RouterMovesTest : public testing::Test {
 protected:
  RouterMovesTest() {
    prefill = driver.AddUp(v1::ROLE_PREFILL);
    from = driver.AddUp(v1::ROLE_DECODE);
    driver.AnswerProbes();
    id = driver.Ask(4, 8);
    attempt = driver.Next(from).admit().work().request();
    driver.Admitted(from, attempt);
    driver.Next(prefill);
    driver.FirstToken(prefill, attempt, 0, 10);
    driver.PrefillDone(prefill, attempt);
    driver.Tokens(from, attempt, 0, {10, 11, 12});
    to = driver.AddUp(v1::ROLE_DECODE);
    driver.AnswerProbes();
  }
  void Drain() {
    v1::Event event;
    event.mutable_draining();
    driver.Event(from, event);
  }
  // Up to where `from` is asked to push. Returns the second attempt.
  uint64_t StartMove() {
    Drain();
    driver.AnswerProbes();
    driver.Advance(milliseconds(20));
    const uint64_t second = driver.Next(to).admit().work().request();
    driver.Admitted(to, second);
    EXPECT_EQ(driver.Next(from).migrate().request(), attempt);
    return second;
  }
  void Migrated() {
    v1::Event event;
    event.mutable_migrated()->set_request(attempt);
    driver.Event(from, event);
  }
  void MigrateFailed() {
    v1::Event event;
    event.mutable_migrate_failed()->set_request(attempt);
    event.mutable_migrate_failed()->set_transfer(true);
    driver.Event(from, event);
  }
  void ExpectAtRest() {
    EXPECT_EQ(driver.core.request_count(), 0u);
    EXPECT_EQ(driver.core.attempt_count(), 0u);
    for (const auto& [worker_id, worker] : driver.core.workers().all()) {
      EXPECT_EQ(worker.attempts, 0u) << worker.address;
    }
  }

  CoreDriver driver;
  WorkerId prefill{};
  WorkerId from{};
  WorkerId to{};
  RequestId id{};
  uint64_t attempt = 0;
};

TEST_F(RouterMovesTest, WorkerThatIsToldToDrainGetsNoMoreWorkAndItsRequestsMove) {
  const std::string address = driver.core.workers().Find(from)->address;

  const absl::StatusOr<v1::DrainWorkerResponse> told = driver.core.DrainWorker(address, driver.now);
  driver.Advance(milliseconds(1));

  ASSERT_TRUE(told.ok()) << told.status();
  EXPECT_EQ(told->requests(), 1u);
  EXPECT_EQ(told->incarnation(), Raw(driver.core.workers().Find(from)->incarnation()));
  EXPECT_TRUE(driver.Next(from).has_drain());
  driver.AnswerProbes();
  driver.Advance(milliseconds(20));
  EXPECT_TRUE(driver.Next(to).has_admit());
}

TEST_F(RouterMovesTest, WorkerWhoseSessionBrokeIsToldToDrainOnceMore) {
  const std::string address = driver.core.workers().Find(from)->address;
  const v1::WorkerHello hello = driver.core.workers().Find(from)->hello;
  ASSERT_TRUE(driver.core.DrainWorker(address, driver.now).ok());
  driver.Advance(milliseconds(1));

  driver.Down(from);
  driver.Up(from, hello);

  EXPECT_TRUE(driver.Next(from).has_drain());
  EXPECT_EQ(driver.core.workers().Find(from)->state, WorkerState::kDraining);
}

TEST_F(RouterMovesTest, TheNextProcessAtAnAddressIsNotToldToDrain) {
  v1::WorkerHello hello = driver.core.workers().Find(from)->hello;
  ASSERT_TRUE(driver.core.DrainWorker(driver.core.workers().Find(from)->address, driver.now).ok());
  driver.Advance(milliseconds(1));

  driver.Down(from);
  hello.set_incarnation(hello.incarnation() + 1000);
  driver.Up(from, hello);

  EXPECT_EQ(driver.core.workers().Find(from)->state, WorkerState::kReady);
  for (const v1::Command& command : driver.commands[from]) EXPECT_FALSE(command.has_drain());
}

TEST_F(RouterMovesTest, OnlyAConnectedWorkerCanBeToldToDrain) {
  const std::string address = driver.core.workers().Find(to)->address;
  driver.Down(to);

  EXPECT_EQ(driver.core.DrainWorker("nowhere:1", driver.now).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(driver.core.DrainWorker(address, driver.now).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(RouterMovesTest, TheOtherWorkerIsAskedForAllTokensShownOnceItIsReached) {
  Drain();
  EXPECT_TRUE(driver.Idle(to)) << "the way there was not probed yet";
  driver.AnswerProbes();
  driver.Advance(milliseconds(20));

  const v1::Command command = driver.Next(to);
  ASSERT_TRUE(command.has_admit());
  EXPECT_EQ(command.admit().work().tokens_size(), 7);
  EXPECT_EQ(command.admit().work().prompt_tokens(), 4u);
  EXPECT_NE(command.admit().work().request(), attempt);
  EXPECT_FALSE(command.admit().local_prefill());
}

TEST_F(RouterMovesTest, TokensOfBothMakeOneStream) {
  const uint64_t second = StartMove();

  driver.Tokens(from, attempt, 3, {13, 14});
  driver.Tokens(to, second, 3, {13});
  EXPECT_EQ(driver.Next(from).cancel().request(), attempt);
  Migrated();
  driver.Tokens(from, attempt, 5, {99});
  driver.Tokens(to, second, 4, {14, 15, 16, 17});
  driver.Finished(to, second, v1::FINISH_REASON_LENGTH);

  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(10, 11, 12, 13, 14, 15, 16, 17));
  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kOk);
  EXPECT_EQ(driver.core.counters().moves, 1u);
  EXPECT_EQ(driver.outcomes[id].finish->finished.retries(), 0u);
  ExpectAtRest();
}

TEST_F(RouterMovesTest, TheAcknowledgedMoveCompletesBeforeTheFirstTokenThere) {
  const uint64_t second = StartMove();

  Migrated();
  EXPECT_TRUE(driver.Idle(from)) << "it has forgotten the request by itself";
  driver.Down(from);
  driver.Tokens(to, second, 3, {13, 14, 15, 16, 17});
  driver.Finished(to, second, v1::FINISH_REASON_LENGTH);

  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kOk);
  ExpectAtRest();
}

TEST_F(RouterMovesTest, StaysWhereItIsWhenTheTransferFails) {
  const uint64_t second = StartMove();

  MigrateFailed();

  EXPECT_EQ(driver.Next(to).cancel().request(), second);
  driver.Tokens(from, attempt, 3, {13, 14, 15, 16, 17});
  driver.Finished(from, attempt, v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kOk);
  EXPECT_EQ(driver.core.counters().moves_failed, 1u);
  ExpectAtRest();
}

TEST_F(RouterMovesTest, StaysWhereItIsWhenTheOtherWorkerRefusesOrIsLost) {
  Drain();
  driver.AnswerProbes();
  driver.Advance(milliseconds(20));
  const uint64_t second = driver.Next(to).admit().work().request();

  driver.Rejected(to, second, absl::StatusCode::kResourceExhausted);
  driver.Advance(milliseconds(200));
  const uint64_t third = driver.Next(to).admit().work().request();
  EXPECT_NE(third, second);
  driver.Down(to);

  driver.Tokens(from, attempt, 3, {13});
  EXPECT_EQ(driver.outcomes[id].tokens.size(), 4u);
  EXPECT_EQ(driver.core.workers().Find(to)->attempts, 0u);
}

TEST_F(RouterMovesTest, TheMoveToALostWorkerIsCalledOff) {
  StartMove();

  driver.Down(to);

  const v1::Command command = driver.Next(from);
  ASSERT_TRUE(command.has_migrate());
  EXPECT_EQ(command.migrate().request(), attempt);
  EXPECT_FALSE(command.migrate().has_ticket());
}

TEST_F(RouterMovesTest, WhatWentToALostWorkerIsPlacedAnew) {
  StartMove();
  driver.Down(to);

  Migrated();

  EXPECT_EQ(driver.core.queued_count(), 1u);
  EXPECT_EQ(driver.core.workers().Find(from)->attempts, 0u);
}

TEST_F(RouterMovesTest, LossOfTheWorkerThatRunsItGivesTheMoveUp) {
  const uint64_t second = StartMove();

  driver.Down(from);

  EXPECT_EQ(driver.Next(to).cancel().request(), second);
  const v1::Command again = driver.Next(to);
  ASSERT_TRUE(again.has_admit());
  EXPECT_NE(again.admit().work().request(), second);
  EXPECT_EQ(driver.core.workers().Find(to)->attempts, 1u);
}

TEST_F(RouterMovesTest, WhatCanNeverGoIsNotAskedAgain) {
  StartMove();
  v1::Event event;
  event.mutable_migrate_failed()->set_request(attempt);
  event.mutable_migrate_failed()->set_code(static_cast<int>(absl::StatusCode::kFailedPrecondition));

  driver.Event(from, event);
  EXPECT_TRUE(driver.Next(to).has_cancel());
  driver.Advance(std::chrono::seconds(10));

  EXPECT_TRUE(driver.Idle(to));
}

TEST(RouterMovesAtOnceTest, AFewOfAWorkerMoveAtATime) {
  CoreDriver driver;
  const WorkerId prefill = driver.AddUp(v1::ROLE_PREFILL);
  const WorkerId from = driver.AddUp(v1::ROLE_DECODE);
  driver.AnswerProbes();
  for (int i = 0; i < 6; ++i) {
    driver.Ask(4, 8);
    const uint64_t attempt = driver.Next(from).admit().work().request();
    driver.Admitted(from, attempt);
    driver.FirstToken(prefill, attempt, 0, 10);
    driver.PrefillDone(prefill, attempt);
  }
  const WorkerId to = driver.AddUp(v1::ROLE_DECODE);
  v1::Event draining;
  draining.mutable_draining();
  driver.Event(from, draining);
  driver.AnswerProbes();
  driver.Advance(milliseconds(20));
  driver.Advance(milliseconds(20));

  const auto admitted = [&] {
    std::vector<uint64_t> attempts;
    while (!driver.Idle(to)) attempts.push_back(driver.Next(to).admit().work().request());
    return attempts;
  };
  const std::vector<uint64_t> first = admitted();
  ASSERT_EQ(first.size(), 4u);
  driver.Tokens(to, first[0], 0, {10});
  driver.Advance(milliseconds(20));
  EXPECT_EQ(admitted().size(), 1u);
}

TEST_F(RouterMovesTest, CancelReachesBoth) {
  const uint64_t second = StartMove();

  driver.Cancel(id);

  EXPECT_EQ(driver.Next(from).cancel().request(), attempt);
  EXPECT_EQ(driver.Next(to).cancel().request(), second);
  ExpectAtRest();
}

}  // namespace
}  // namespace baton
