// The life of a request when nothing fails: queue, reserve, prefill, hand over, decode, end.
#include "router/router_core.h"

#include <cmath>

#include "router/core_driver.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// One prefill and one decode worker with a healthy path between them.
class SplitClusterTest : public testing::Test {
 protected:
  explicit SplitClusterTest(CoreOptions options = {}) : driver(std::move(options)) {
    prefill = driver.AddUp(v1::ROLE_PREFILL);
    decode = driver.AddUp(v1::ROLE_DECODE);
    driver.AnswerProbes();
  }
  // Asks and brings the request to where P computes; returns the attempt.
  uint64_t AskAndAdmit(RequestId* asked, uint32_t max_tokens = 8) {
    *asked = driver.Ask(4, max_tokens);
    const uint64_t attempt = driver.Next(decode).admit().work().request();
    driver.Admitted(decode, attempt);
    EXPECT_EQ(driver.Next(prefill).prefill().work().request(), attempt);
    return attempt;
  }
  // Nothing is left of any request.
  void ExpectAtRest() {
    EXPECT_EQ(driver.core.request_count(), 0u);
    EXPECT_EQ(driver.core.attempt_count(), 0u);
    EXPECT_EQ(driver.core.queued_count(), 0u);
    for (const auto& [worker_id, worker] : driver.core.workers().all()) {
      EXPECT_EQ(worker.attempts, 0u) << worker.address;
      EXPECT_EQ(worker.prefill_tokens, 0u) << worker.address;
    }
  }

  CoreDriver driver;
  WorkerId prefill{};
  WorkerId decode{};
  RequestId id{};
};

TEST_F(SplitClusterTest, ReservesOnDecodeFirstAndHandsTheTicketToPrefill) {
  driver.Ask(4, 8);

  ASSERT_TRUE(driver.Idle(prefill)) << "nothing is computed before there is room to land";
  const v1::Command command = driver.Next(decode);
  ASSERT_TRUE(command.has_admit());
  EXPECT_FALSE(command.admit().local_prefill());
  EXPECT_EQ(command.admit().work().tokens_size(), 4);
  EXPECT_EQ(command.admit().work().prompt_tokens(), 4u);
  EXPECT_EQ(command.admit().work().total_tokens_max(), 12u);
  EXPECT_EQ(command.admit().work().sampling().seed(), 42u);
  driver.Admitted(decode, command.admit().work().request(), /*epoch=*/5);
  const v1::Command second = driver.Next(prefill);
  ASSERT_TRUE(second.has_prefill());
  EXPECT_EQ(second.prefill().ticket().epoch(), 5u);
  EXPECT_EQ(second.prefill().work().request(), command.admit().work().request());
}

TEST_F(SplitClusterTest, StreamsTheFirstTokenFromPrefillAndTheRestFromDecode) {
  const uint64_t attempt = AskAndAdmit(&id, /*max_tokens=*/3);

  driver.FirstToken(prefill, attempt, 0, 11);
  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(11)) << "it never waits for the transfer";
  driver.PrefillDone(prefill, attempt);
  driver.Tokens(decode, attempt, 0, {11, 12});
  driver.Tokens(decode, attempt, 2, {13});
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  const Outcome& outcome = driver.outcomes[id];
  EXPECT_THAT(outcome.tokens, ElementsAre(11, 12, 13));
  EXPECT_EQ(outcome.text, "<11><12><13>");
  ASSERT_TRUE(outcome.finish.has_value());
  EXPECT_TRUE(outcome.finish->status.ok());
  EXPECT_EQ(outcome.finish->finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(outcome.finish->finished.usage().prompt_tokens(), 4u);
  EXPECT_EQ(outcome.finish->finished.usage().generated_tokens(), 3u);
  EXPECT_EQ(outcome.finish->finished.prefill_worker(), "worker1");
  EXPECT_EQ(outcome.finish->finished.decode_worker(), "worker2");
  EXPECT_TRUE(driver.Idle(prefill)) << "whoever has finished needs no cancel";
  EXPECT_TRUE(driver.Idle(decode));
  ExpectAtRest();
}

TEST_F(SplitClusterTest, TokensThatOvertakePrefillsAnswersAreShownOnce) {
  const uint64_t attempt = AskAndAdmit(&id, /*max_tokens=*/2);

  driver.Tokens(decode, attempt, 0, {11, 12});
  driver.FirstToken(prefill, attempt, 0, 11);
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);
  driver.PrefillDone(prefill, attempt);

  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(11, 12));
  EXPECT_TRUE(driver.outcomes[id].finish->status.ok());
  ExpectAtRest();
}

TEST_F(SplitClusterTest, TerminalFirstTokenEndsTheRequestAndCancelsDecode) {
  const uint64_t attempt = AskAndAdmit(&id);

  driver.FirstToken(prefill, attempt, 0, 2, 1, v1::FINISH_REASON_STOP);

  ASSERT_TRUE(driver.outcomes[id].finish.has_value());
  EXPECT_EQ(driver.outcomes[id].finish->finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(driver.outcomes[id].finish->finished.stop_token_id(), 2);
  EXPECT_EQ(driver.outcomes[id].text, "") << "a stop token has no text";
  EXPECT_EQ(driver.Next(decode).cancel().request(), attempt);
  EXPECT_TRUE(driver.Idle(prefill));
  ExpectAtRest();
}

TEST_F(SplitClusterTest, OneTokenNeedsNoDecodeWorker) {
  id = driver.Ask(4, 1);

  ASSERT_TRUE(driver.Idle(decode));
  const v1::Command command = driver.Next(prefill);
  ASSERT_TRUE(command.has_prefill());
  EXPECT_FALSE(command.prefill().has_ticket());
  driver.FirstToken(prefill, command.prefill().work().request(), 0, 11, /*epoch=*/0,
                    v1::FINISH_REASON_LENGTH);

  EXPECT_EQ(driver.outcomes[id].finish->finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(driver.Idle(decode));
  ExpectAtRest();
}

TEST_F(SplitClusterTest, StopStringCancelsBothWorkersAndCutsTheText) {
  NewRequest request = driver.Make(4, 8);
  request.text = std::make_unique<PlainText>("<12>");
  id = driver.Submit(std::move(request));
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.Admitted(decode, attempt);
  driver.Next(prefill);

  driver.FirstToken(prefill, attempt, 0, 11);
  driver.Tokens(decode, attempt, 0, {11, 12, 13});

  const Outcome& outcome = driver.outcomes[id];
  EXPECT_THAT(outcome.tokens, ElementsAre(11, 12)) << "up to the token that completed the match";
  EXPECT_EQ(outcome.text, "<11>");
  EXPECT_EQ(outcome.finish->finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(outcome.finish->finished.stop_string(), "<12>");
  EXPECT_EQ(driver.Next(decode).cancel().request(), attempt);
  ExpectAtRest();
}

TEST_F(SplitClusterTest, StopStringInTheFirstTokenCancelsThePrefillToo) {
  NewRequest request = driver.Make(4, 8);
  request.text = std::make_unique<PlainText>("<11>");
  id = driver.Submit(std::move(request));
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.Admitted(decode, attempt);
  driver.Next(prefill);

  driver.FirstToken(prefill, attempt, 0, 11);

  EXPECT_EQ(driver.Next(decode).cancel().request(), attempt);
  EXPECT_EQ(driver.Next(prefill).cancel().request(), attempt);
  ExpectAtRest();
}

TEST_F(SplitClusterTest, GeneratedIdsAreInputAndCountNoMore) {
  NewRequest request = driver.Make(4, 4);
  request.tokens.push_back(11);
  request.tokens.push_back(12);
  id = driver.Submit(std::move(request));

  const v1::Work work = driver.Next(decode).admit().work();
  EXPECT_EQ(work.tokens_size(), 6);
  EXPECT_EQ(work.prompt_tokens(), 4u);
  driver.Admitted(decode, work.request());
  driver.Next(prefill);
  driver.FirstToken(prefill, work.request(), 2, 13);
  driver.PrefillDone(prefill, work.request());
  driver.Tokens(decode, work.request(), 2, {13, 14});
  driver.Finished(decode, work.request(), v1::FINISH_REASON_LENGTH);

  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(13, 14));
  EXPECT_EQ(driver.outcomes[id].text, "<13><14>");
  EXPECT_EQ(driver.outcomes[id].finish->finished.usage().generated_tokens(), 2u);
}

TEST_F(SplitClusterTest, GeneratedIdsThatEndTheStreamEndItAtOnce) {
  NewRequest stopped = driver.Make(4, 4);
  stopped.tokens.push_back(2);
  const RequestId by_token = driver.Submit(std::move(stopped));
  NewRequest full = driver.Make(4, 1);
  full.tokens.push_back(11);
  const RequestId by_length = driver.Submit(std::move(full));
  NewRequest matched = driver.Make(4, 4);
  matched.tokens.push_back(11);
  matched.text = std::make_unique<PlainText>("<11>");
  const RequestId by_string = driver.Submit(std::move(matched));

  EXPECT_EQ(driver.outcomes[by_token].finish->finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(driver.outcomes[by_length].finish->finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_EQ(driver.outcomes[by_string].finish->finished.stop_string(), "<11>");
  EXPECT_TRUE(driver.Idle(decode));
  ExpectAtRest();
}

TEST_F(SplitClusterTest, CancelReachesWhoeverHoldsTheRequest) {
  const RequestId admitting = driver.Ask();
  const uint64_t first = driver.Next(decode).admit().work().request();
  driver.Cancel(admitting);
  EXPECT_EQ(driver.Next(decode).cancel().request(), first);
  EXPECT_TRUE(driver.Idle(prefill)) << "it had not been asked";

  RequestId prefilling;
  const uint64_t second = AskAndAdmit(&prefilling);
  driver.Cancel(prefilling);
  EXPECT_EQ(driver.Next(decode).cancel().request(), second);
  EXPECT_EQ(driver.Next(prefill).cancel().request(), second);

  RequestId decoding;
  const uint64_t third = AskAndAdmit(&decoding);
  driver.FirstToken(prefill, third, 0, 11);
  driver.PrefillDone(prefill, third);
  driver.Cancel(decoding);
  EXPECT_EQ(driver.Next(decode).cancel().request(), third);
  EXPECT_TRUE(driver.Idle(prefill));

  EXPECT_EQ(driver.outcomes[decoding].code(), absl::StatusCode::kCancelled);
  ExpectAtRest();
}

TEST_F(SplitClusterTest, WhatComesAfterTheEndIsDropped) {
  const uint64_t attempt = AskAndAdmit(&id);
  driver.FirstToken(prefill, attempt, 0, 11);
  driver.Cancel(id);

  driver.PrefillDone(prefill, attempt);
  driver.Tokens(decode, attempt, 0, {11, 12});
  driver.Finished(decode, attempt, v1::FINISH_REASON_STOP);
  driver.Cancel(id);

  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(11));
  EXPECT_EQ(driver.core.counters().stale_events, 3u);
  ExpectAtRest();
}

TEST_F(SplitClusterTest, OnlyTheOwnerIsBelieved) {
  const WorkerId other_prefill = driver.AddUp(v1::ROLE_PREFILL);
  const WorkerId other_decode = driver.AddUp(v1::ROLE_DECODE);
  driver.AnswerProbes();
  const uint64_t attempt = AskAndAdmit(&id);

  driver.FirstToken(other_prefill, attempt, 0, 66);
  driver.Tokens(other_decode, attempt, 0, {66});
  driver.FirstToken(prefill, attempt, 0, 66, /*epoch=*/9);
  driver.Tokens(decode, attempt, 0, {66}, /*epoch=*/9);
  driver.Finished(other_decode, attempt, v1::FINISH_REASON_STOP);
  driver.FirstToken(decode, attempt, 0, 66);

  EXPECT_THAT(driver.outcomes[id].tokens, IsEmpty());
  EXPECT_FALSE(driver.outcomes[id].finish.has_value());
}

TEST_F(SplitClusterTest, DeadlineEndsTheRequestWhereverItIs) {
  NewRequest request = driver.Make(4, 8);
  request.deadline = driver.now + milliseconds(500);
  id = driver.Submit(std::move(request));
  const v1::Work work = driver.Next(decode).admit().work();
  EXPECT_EQ(work.deadline_ms(), 500u);
  driver.Admitted(decode, work.request());
  driver.Next(prefill);

  driver.Advance(milliseconds(499));
  EXPECT_FALSE(driver.outcomes[id].finish.has_value());
  driver.Advance(milliseconds(1));

  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kDeadlineExceeded);
  EXPECT_TRUE(driver.Next(decode).has_cancel());
  EXPECT_TRUE(driver.Next(prefill).has_cancel());
  ExpectAtRest();
}

TEST_F(SplitClusterTest, ReportsWhatEachStageTook) {
  driver.Down(decode);
  id = driver.Ask(4, 2);
  driver.Advance(milliseconds(30));
  driver.Up(decode, CoreDriver::Hello(v1::ROLE_DECODE, 77));
  driver.AnswerProbes();
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.now += milliseconds(5);
  driver.Admitted(decode, attempt);
  driver.now += milliseconds(20);
  driver.FirstToken(prefill, attempt, 0, 11);
  driver.now += milliseconds(7);
  driver.Tokens(decode, attempt, 0, {11, 12});
  EXPECT_THAT(driver.outcomes[id].pauses, testing::ElementsAre(milliseconds(7)));
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  const v1::StageTimings& timings = driver.outcomes[id].finish->finished.timings();
  EXPECT_DOUBLE_EQ(timings.queue_ms(), 30);
  EXPECT_DOUBLE_EQ(timings.admit_ms(), 5);
  EXPECT_DOUBLE_EQ(timings.first_token_ms(), 55);
  EXPECT_DOUBLE_EQ(timings.decode_ms(), 7);
  EXPECT_DOUBLE_EQ(timings.total_ms(), 62);
}

TEST_F(SplitClusterTest, PrefillWorkerTakesNoMoreThanItsShare) {
  // Two of these exceed the share; the first alone may.
  driver.Ask(6000, 8);
  const uint64_t first = driver.Next(decode).admit().work().request();
  driver.Admitted(decode, first);
  driver.Next(prefill);
  driver.Ask(6000, 8);
  EXPECT_EQ(driver.core.queued_count(), 1u);
  EXPECT_TRUE(driver.Idle(decode)) << "it would hold blocks for nothing";

  driver.FirstToken(prefill, first, 0, 11);

  EXPECT_EQ(driver.core.queued_count(), 0u);
  EXPECT_TRUE(driver.Next(decode).has_admit());
}

// Goal: prompts whose beginning is cached are not dealt out as if all of them were computed.
TEST_F(SplitClusterTest, PrefillWorkersShareIsOfWhatItComputes) {
  driver.Ask(6000, 8);
  const uint64_t first = driver.Next(decode).admit().work().request();
  driver.Admitted(decode, first);
  driver.Next(prefill);
  driver.FirstToken(prefill, first, 0, 11, 1, v1::FINISH_REASON_UNSPECIFIED,
                    /*cached_tokens=*/4800);

  for (int i = 0; i < 7; ++i) driver.Ask(6000, 8);

  EXPECT_EQ(driver.core.workers().Find(prefill)->prefill_tokens, 6 * 1200u);
  EXPECT_EQ(driver.core.queued_count(), 1u);
}

TEST_F(SplitClusterTest, DrainingWorkersFinishWhatTheyHaveAndGetNothingNew) {
  const uint64_t attempt = AskAndAdmit(&id, 2);
  v1::Event draining;
  draining.mutable_draining();
  driver.Event(decode, draining);

  driver.Ask();
  EXPECT_TRUE(driver.Idle(decode));
  driver.FirstToken(prefill, attempt, 0, 11);
  driver.Tokens(decode, attempt, 0, {11, 12});
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_TRUE(driver.outcomes[id].finish->status.ok());
  EXPECT_EQ(driver.core.Cluster().workers(1).state(), "draining");
}

TEST_F(SplitClusterTest, DrainingRouterRefusesNewRequestsAndFinishesOthers) {
  const uint64_t attempt = AskAndAdmit(&id, 2);
  driver.core.Drain();
  const RequestId late = driver.Ask();
  driver.Tokens(decode, attempt, 0, {11});
  driver.EndAll(absl::UnavailableError("the router has shut down"));

  EXPECT_EQ(driver.outcomes[late].code(), absl::StatusCode::kUnavailable);
  EXPECT_FALSE(driver.outcomes[late].accepted);
  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(11));
  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(driver.Next(decode).has_cancel());
  ExpectAtRest();
}

class SlowClientTest : public SplitClusterTest {
 protected:
  static CoreOptions Small() {
    CoreOptions options;
    options.client_buffer_bytes_max = 64;
    return options;
  }
  SlowClientTest() : SplitClusterTest(Small()) {}
};

TEST_F(SlowClientTest, OneThatDoesNotReadIsEndedAloneAndNothingWaits) {
  const uint64_t attempt = AskAndAdmit(&id, 100);
  uint32_t index = 0;
  while (!driver.outcomes[id].finish.has_value() && index < 100) {
    driver.Tokens(decode, attempt, index, {static_cast<TokenId>(10 + index)});
    ++index;
  }

  EXPECT_LT(index, 20u);
  // Not what has a client ask again after a while.
  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kAborted);
  EXPECT_EQ(driver.outcomes[id].finish->retry_after_ms, 0u);
  EXPECT_THAT(std::string(driver.outcomes[id].finish->status.message()),
              HasSubstr("reads too slowly"));
  EXPECT_TRUE(driver.Next(decode).has_cancel());
  ExpectAtRest();
}

TEST_F(SlowClientTest, OneThatReadsIsNot) {
  const uint64_t attempt = AskAndAdmit(&id, 100);
  for (uint32_t index = 0; index < 100; ++index) {
    driver.Tokens(decode, attempt, index, {static_cast<TokenId>(10 + index)});
    driver.core.OnWritten(id, 1000);
  }
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_TRUE(driver.outcomes[id].finish->status.ok());
}

// Decode workers with local prefill and no prefill worker.
class ColocatedClusterTest : public testing::Test {
 protected:
  ColocatedClusterTest() { decode = driver.AddUp(v1::ROLE_DECODE, /*local_prefill=*/true); }
  CoreDriver driver;
  WorkerId decode{};
};

TEST_F(ColocatedClusterTest, DecodeWorkerPrefillsItself) {
  const RequestId id = driver.Ask(4, 2);
  const v1::Command command = driver.Next(decode);
  ASSERT_TRUE(command.admit().local_prefill());
  const uint64_t attempt = command.admit().work().request();
  driver.AdmittedLocal(decode, attempt);
  driver.Tokens(decode, attempt, 0, {11, 12}, /*epoch=*/0);
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(11, 12));
  EXPECT_TRUE(driver.outcomes[id].finish->status.ok());
  EXPECT_EQ(driver.outcomes[id].finish->finished.prefill_worker(), "");
  EXPECT_EQ(driver.core.request_count(), 0u);
}

TEST_F(ColocatedClusterTest, OneTokenIsDecodesToo) {
  const RequestId id = driver.Ask(4, 1);
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.AdmittedLocal(decode, attempt);
  driver.Tokens(decode, attempt, 0, {11}, 0);
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_TRUE(driver.outcomes[id].finish->status.ok());
}

TEST_F(ColocatedClusterTest, LoadSpreads) {
  const WorkerId other = driver.AddUp(v1::ROLE_DECODE, true);
  for (int i = 0; i < 6; ++i) driver.Ask();

  EXPECT_EQ(driver.commands[decode].size(), 3u);
  EXPECT_EQ(driver.commands[other].size(), 3u);
}

TEST(RouterCoreQueueTest, RequestsWaitForWorkersThatStartLater) {
  CoreDriver driver;
  const RequestId id = driver.Ask();
  EXPECT_EQ(driver.core.queued_count(), 1u);
  EXPECT_TRUE(driver.outcomes[id].accepted);

  const WorkerId decode = driver.AddUp(v1::ROLE_DECODE, true);

  EXPECT_TRUE(driver.Next(decode).has_admit());
  EXPECT_FALSE(driver.outcomes[id].finish.has_value());
}

TEST(RouterCoreQueueTest, WaitIsBounded) {
  CoreOptions options;
  options.queue_time_max = seconds(5);
  CoreDriver driver(options);
  const RequestId id = driver.Ask();
  driver.Advance(milliseconds(4999));
  EXPECT_FALSE(driver.outcomes[id].finish.has_value());
  driver.Advance(milliseconds(1));

  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(driver.outcomes[id].finish->status.message()),
              HasSubstr("no decode worker"));
}

TEST(RouterCoreQueueTest, WithoutAnybodyWhoPrefillsItSaysSo) {
  CoreOptions options;
  options.queue_time_max = seconds(5);
  CoreDriver driver(options);
  driver.AddUp(v1::ROLE_DECODE, /*local_prefill=*/false);
  const RequestId id = driver.Ask();
  driver.Advance(seconds(5));

  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(driver.outcomes[id].finish->status.message()),
              HasSubstr("no prefill worker was ready"));
}

TEST(RouterCoreQueueTest, FullQueueRefusesWithARetryHint) {
  CoreOptions options;
  options.queue.requests = 2;
  CoreDriver driver(options);
  driver.Ask();
  driver.Ask();
  const RequestId refused = driver.Ask();

  EXPECT_EQ(driver.outcomes[refused].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(driver.outcomes[refused].accepted);
  EXPECT_GT(driver.outcomes[refused].finish->retry_after_ms, 0u);
  EXPECT_EQ(driver.core.queued_count(), 2u);
}

TEST(RouterCoreQueueTest, HigherPriorityGoesFirstAndEqualsByArrival) {
  CoreDriver driver;
  const auto ask = [&driver](int32_t priority, uint32_t prompt_tokens) {
    NewRequest request = driver.Make(prompt_tokens, 4);
    request.priority = priority;
    driver.Submit(std::move(request));
  };
  ask(0, 1);
  ask(5, 2);
  ask(0, 3);
  ask(5, 4);
  const WorkerId decode = driver.AddUp(v1::ROLE_DECODE, true);

  std::vector<uint32_t> order;
  while (!driver.Idle(decode)) order.push_back(driver.Next(decode).admit().work().prompt_tokens());
  EXPECT_THAT(order, ElementsAre(2, 4, 1, 3));
}

TEST(RouterCoreQueueTest, DeadlineThatTheQueueCannotMeetIsRefusedAtOnce) {
  CoreOptions options;
  CoreDriver driver(options);
  v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, 1, true);
  hello.set_sequences_max(1);
  const WorkerId decode = driver.core.AddWorker("d", v1::ROLE_DECODE);
  driver.Up(decode, hello);
  v1::Event load;
  load.mutable_load()->mutable_load()->set_prefill_tokens_per_second(100);
  driver.Event(decode, load);
  driver.Ask();  // Runs.
  driver.AdmittedLocal(decode, driver.Next(decode).admit().work().request());
  driver.Ask(1000);  // Waits: about 10 s.
  NewRequest hasty = driver.Make(4, 4);
  hasty.deadline = driver.now + seconds(2);
  const RequestId refused = driver.Submit(std::move(hasty));
  NewRequest patient = driver.Make(4, 4);
  patient.deadline = driver.now + seconds(20);
  const RequestId waits = driver.Submit(std::move(patient));

  EXPECT_EQ(driver.outcomes[refused].code(), absl::StatusCode::kResourceExhausted);
  EXPECT_FALSE(driver.outcomes[refused].accepted);
  EXPECT_EQ(driver.outcomes[refused].finish->retry_after_ms, 10000u);
  EXPECT_FALSE(driver.outcomes[waits].finish.has_value());
}

TEST(RouterCoreQueueTest, AnswerThatEndsWithAStopStringMakesRoomAtOnce) {
  CoreDriver driver;
  v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, 1, true);
  hello.set_sequences_max(1);
  const WorkerId decode = driver.core.AddWorker("d", v1::ROLE_DECODE);
  driver.Up(decode, hello);
  NewRequest request = driver.Make(4, 8);
  request.text = std::make_unique<PlainText>("<12>");
  driver.Submit(std::move(request));
  driver.Ask(5);
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.AdmittedLocal(decode, attempt);
  driver.Tokens(decode, attempt, 0, {11}, 0);
  EXPECT_TRUE(driver.Idle(decode));

  driver.Tokens(decode, attempt, 1, {12}, 0);

  EXPECT_EQ(driver.Next(decode).cancel().request(), attempt);
  EXPECT_EQ(driver.Next(decode).admit().work().prompt_tokens(), 5u);
}

// The rate that workers report is of what they compute.
TEST(RouterCoreQueueTest, TokensThatAreCachedMakeNobodyWait) {
  CoreDriver driver;
  v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, 1, true);
  hello.set_sequences_max(1);
  const WorkerId decode = driver.core.AddWorker("d", v1::ROLE_DECODE);
  driver.Up(decode, hello);
  v1::Event load;
  load.mutable_load()->mutable_load()->set_prefill_tokens_per_second(100);
  driver.Event(decode, load);
  const auto hasty = [&driver] {
    NewRequest request = driver.Make(4, 4);
    request.deadline = driver.now + seconds(2);
    return driver.Submit(std::move(request));
  };
  driver.Ask(1000);  // Runs.
  driver.Ask(1000);  // Waits.
  EXPECT_FALSE(driver.outcomes[hasty()].finish.has_value()) << "nobody knows what is cached";

  // 1000 and 4 tokens wait, of which one in ten is computed: one second.
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.AdmittedLocal(decode, attempt, /*cached_tokens=*/900);
  EXPECT_FALSE(driver.outcomes[hasty()].finish.has_value());

  driver.Ask(1200);
  EXPECT_EQ(driver.outcomes[hasty()].code(), absl::StatusCode::kResourceExhausted);
}

TEST(RouterCoreQueueTest, RateThatIsNoRateRefusesNobody) {
  CoreDriver driver;
  v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, 1, true);
  hello.set_sequences_max(1);
  const WorkerId decode = driver.core.AddWorker("d", v1::ROLE_DECODE);
  driver.Up(decode, hello);
  driver.Ask();  // Runs.
  driver.Ask();  // Waits.
  for (const double rate : {double{NAN}, double{INFINITY}, -1.0}) {
    v1::Event load;
    load.mutable_load()->mutable_load()->set_prefill_tokens_per_second(rate);
    driver.Event(decode, load);
    const RequestId id = driver.Ask();

    EXPECT_FALSE(driver.outcomes[id].finish.has_value()) << rate;
  }
}

TEST(RouterCoreQueueTest, ExpiredOnArrival) {
  CoreDriver driver;
  NewRequest request = driver.Make(4, 4);
  request.deadline = driver.now;
  const RequestId id = driver.Submit(std::move(request));

  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(RouterCoreQueueTest, EveryRequestEndsAtTheRoutersOwnLimit) {
  CoreOptions options;
  options.request_time_max = seconds(10);
  CoreDriver driver(options);
  const WorkerId decode = driver.AddUp(v1::ROLE_DECODE, true);
  const RequestId id = driver.Ask();
  driver.AdmittedLocal(decode, driver.Next(decode).admit().work().request());
  driver.Advance(seconds(10));

  EXPECT_EQ(driver.outcomes[id].code(), absl::StatusCode::kDeadlineExceeded);
}

TEST(RouterCoreQueueTest, WhatCanNeverFitIsRefusedAndHoldsUpNobody) {
  CoreDriver driver;
  v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, 1, true);
  hello.set_blocks_total(4);
  const WorkerId decode = driver.core.AddWorker("d", v1::ROLE_DECODE);
  driver.Up(decode, hello);
  driver.Ask();
  ASSERT_TRUE(driver.Next(decode).has_admit());
  const RequestId large = driver.Ask(/*prompt_tokens=*/30, /*max_tokens=*/35);
  const RequestId next = driver.Ask();

  EXPECT_EQ(driver.outcomes[large].code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(driver.outcomes[large].accepted);
  EXPECT_TRUE(driver.Next(decode).has_admit());
  EXPECT_FALSE(driver.outcomes[next].finish.has_value());
}

TEST(RouterCoreQueueTest, AnAnswerWithoutAGivenLengthEndsWithTheKvCache) {
  CoreDriver driver;
  v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, 1, true);
  hello.set_blocks_total(4);
  const WorkerId decode = driver.core.AddWorker("d", v1::ROLE_DECODE);
  driver.Up(decode, hello);
  NewRequest request = driver.Make(10, 2000);
  request.open_ended = true;
  driver.Submit(std::move(request));

  EXPECT_EQ(driver.Next(decode).admit().work().total_tokens_max(), 64u);
}

TEST(RouterCoreTest, AWorkerThatDrainsWhileRefusedIsNotUsedWhenItCouldBe) {
  CoreDriver driver;
  const WorkerId first = driver.AddUp(v1::ROLE_DECODE, true);
  v1::WorkerHello other = CoreDriver::Hello(v1::ROLE_DECODE, 77, true);
  other.mutable_model()->set_model_fingerprint("another");
  const WorkerId second = driver.core.AddWorker("second", v1::ROLE_DECODE);
  driver.Up(second, other);
  v1::Event draining;
  draining.mutable_draining();
  driver.Event(second, draining);
  driver.Down(first);

  EXPECT_EQ(driver.core.workers().Find(second)->state, WorkerState::kDraining);
  driver.Ask();
  EXPECT_TRUE(driver.Idle(second));
}

}  // namespace
}  // namespace baton
