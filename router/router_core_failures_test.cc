// What the core does when workers refuse, fail, contradict themselves or die.
#include "router/core_driver.h"
#include "router/router_core.h"

namespace baton {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;
using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

// Two prefill and two decode workers, all paths healthy. The first of each is chosen first.
class FailureTest : public testing::Test {
 protected:
  FailureTest() {
    p1 = driver.AddUp(v1::ROLE_PREFILL);
    p2 = driver.AddUp(v1::ROLE_PREFILL);
    d1 = driver.AddUp(v1::ROLE_DECODE);
    d2 = driver.AddUp(v1::ROLE_DECODE);
    driver.AnswerProbes();
  }
  // Asks and brings the request to where P1 computes for D1.
  uint64_t Prefilling(uint32_t max_tokens = 8) {
    id = driver.Ask(4, max_tokens);
    const uint64_t attempt = driver.Next(d1).admit().work().request();
    EXPECT_NE(attempt, 0u);
    driver.Admitted(d1, attempt);
    EXPECT_TRUE(driver.Next(p1).has_prefill());
    return attempt;
  }
  // As above, then to where D1 decodes and {11, 12} have been shown.
  uint64_t Decoding(uint32_t max_tokens = 8) {
    const uint64_t attempt = Prefilling(max_tokens);
    driver.FirstToken(p1, attempt, 0, 11);
    driver.PrefillDone(p1, attempt);
    driver.Tokens(d1, attempt, 0, {11, 12});
    return attempt;
  }
  // Completes the request on `decode` with `prefill` from its admit on.
  void Complete(WorkerId decode, WorkerId prefill, uint32_t index, std::vector<TokenId> tokens) {
    const v1::Command admit = driver.Next(decode);
    ASSERT_TRUE(admit.has_admit());
    const uint64_t attempt = admit.admit().work().request();
    driver.Admitted(decode, attempt);
    ASSERT_TRUE(driver.Next(prefill).has_prefill());
    driver.FirstToken(prefill, attempt, index, tokens[0]);
    driver.PrefillDone(prefill, attempt);
    driver.Tokens(decode, attempt, index, tokens);
    driver.Finished(decode, attempt, v1::FINISH_REASON_STOP);
  }
  const Outcome& outcome() { return driver.outcomes[id]; }

  CoreDriver driver;
  WorkerId p1{}, p2{}, d1{}, d2{};
  RequestId id{};
};

TEST_F(FailureTest, DecodeWithoutRoomSendsTheRequestToAnother) {
  id = driver.Ask();
  driver.Rejected(d1, driver.Next(d1).admit().work().request(),
                  absl::StatusCode::kResourceExhausted);

  Complete(d2, p1, 0, {11, 2});
  EXPECT_TRUE(outcome().finish->status.ok());
  EXPECT_EQ(outcome().finish->finished.retries(), 0u) << "waiting is not a retry";
}

TEST_F(FailureTest, RefusedRequestKeepsItsPlaceAtTheHead) {
  driver.Down(d2);
  id = driver.Ask(5);
  driver.Rejected(d1, driver.Next(d1).admit().work().request(),
                  absl::StatusCode::kResourceExhausted);
  driver.Ask(6);
  EXPECT_EQ(driver.core.queued_count(), 2u);
  EXPECT_TRUE(driver.Idle(d1)) << "it is left alone for a moment";

  driver.Advance(milliseconds(30));

  EXPECT_EQ(driver.Next(d1).admit().work().prompt_tokens(), 5u);
  EXPECT_EQ(driver.Next(d1).admit().work().prompt_tokens(), 6u);
}

TEST_F(FailureTest, OtherRefusalsEndTheRequest) {
  id = driver.Ask();
  driver.Rejected(d1, driver.Next(d1).admit().work().request(), absl::StatusCode::kInvalidArgument);

  EXPECT_EQ(outcome().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(driver.Idle(d1));
}

TEST_F(FailureTest, RefusalOfAWorkerThatGoesAwayIsARetry) {
  id = driver.Ask();
  driver.Rejected(d1, driver.Next(d1).admit().work().request(), absl::StatusCode::kUnavailable);

  Complete(d2, p1, 0, {2});
  EXPECT_TRUE(outcome().finish->status.ok());
  EXPECT_EQ(outcome().finish->finished.retries(), 1u);
}

TEST_F(FailureTest, PrefillWithoutRoomSendsTheRequestBackToTheQueue) {
  const uint64_t attempt = Prefilling();
  driver.Rejected(p1, attempt, absl::StatusCode::kResourceExhausted);

  EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
  Complete(d1, p2, 0, {2});
  EXPECT_TRUE(outcome().finish->status.ok());
  EXPECT_EQ(outcome().finish->finished.retries(), 0u) << "waiting is not a retry";
}

TEST_F(FailureTest, RefusalAfterTheLastTokenEndsTheRequest) {
  const uint64_t attempt = Prefilling();
  driver.FirstToken(p1, attempt, 0, 2);  // It does not say that this one is the last.
  driver.Rejected(p1, attempt, absl::StatusCode::kResourceExhausted);

  EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
  ASSERT_TRUE(outcome().finish.has_value());
  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_TRUE(driver.Idle(d2));
}

TEST_F(FailureTest, LostPrefillReopensTheLeaseForAnother) {
  const uint64_t attempt = Prefilling();
  driver.Down(p1);

  const v1::Command reopen = driver.Next(d1);
  ASSERT_TRUE(reopen.has_reopen());
  EXPECT_EQ(reopen.reopen().request(), attempt);
  EXPECT_FALSE(reopen.reopen().local_prefill());
  driver.Admitted(d1, attempt, /*epoch=*/2);
  EXPECT_EQ(driver.Next(p2).prefill().ticket().epoch(), 2u);
  driver.FirstToken(p2, attempt, 0, 11, /*epoch=*/1);
  EXPECT_TRUE(outcome().tokens.empty()) << "an epoch that is over";
  driver.FirstToken(p2, attempt, 0, 11, /*epoch=*/2);
  driver.PrefillDone(p2, attempt, 2);
  driver.Tokens(d1, attempt, 0, {11, 2}, 2);
  driver.Finished(d1, attempt, v1::FINISH_REASON_STOP);

  EXPECT_THAT(outcome().tokens, ElementsAre(11, 2));
  EXPECT_EQ(outcome().finish->finished.retries(), 1u);
  EXPECT_EQ(outcome().finish->finished.prefill_worker(), "worker2");
}

TEST_F(FailureTest, LostPrefillAfterItsFirstTokenShowsNothingTwice) {
  const uint64_t attempt = Prefilling();
  driver.FirstToken(p1, attempt, 0, 11);
  driver.Down(p1);
  driver.Next(d1);
  driver.Admitted(d1, attempt, 2);
  EXPECT_EQ(driver.Next(p2).prefill().work().tokens_size(), 4) << "the lease's own tokens";
  driver.FirstToken(p2, attempt, 0, 11, 2);
  driver.PrefillDone(p2, attempt, 2);
  driver.Tokens(d1, attempt, 0, {11, 2}, 2);
  driver.Finished(d1, attempt, v1::FINISH_REASON_STOP);

  EXPECT_THAT(outcome().tokens, ElementsAre(11, 2));
}

TEST_F(FailureTest, SecondPrefillThatSamplesSomethingElseIsNotUsed) {
  const uint64_t attempt = Prefilling();
  driver.FirstToken(p1, attempt, 0, 11);
  driver.Down(p1);
  driver.Next(d1);
  driver.Admitted(d1, attempt, 2);
  driver.Next(p2);
  driver.FirstToken(p2, attempt, 0, 99, 2);

  EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
  EXPECT_EQ(driver.Next(p2).cancel().request(), attempt);
  const v1::Work work = driver.Next(d1).admit().work();
  ASSERT_EQ(work.tokens_size(), 5) << "what was shown is input now";
  EXPECT_EQ(work.tokens(4), 11);
  EXPECT_EQ(driver.core.counters().retries[static_cast<size_t>(RetryCause::kTokensDiffer)], 1u);
}

TEST_F(FailureTest, LostPrefillAfterTheCommitChangesNothing) {
  const uint64_t attempt = Prefilling();
  driver.FirstToken(p1, attempt, 0, 11);
  driver.Down(p1);
  ASSERT_TRUE(driver.Next(d1).has_reopen());
  driver.Tokens(d1, attempt, 0, {11, 12});
  // The second prefill worker had been chosen for the reopened lease, and is free again at once.
  EXPECT_EQ(driver.core.workers().Find(p2)->prefill_tokens, 0u);
  EXPECT_EQ(driver.core.workers().Find(p2)->attempts, 0u);
  driver.AlreadyCommitted(d1, attempt);
  driver.Tokens(d1, attempt, 2, {2});
  driver.Finished(d1, attempt, v1::FINISH_REASON_STOP);

  EXPECT_THAT(outcome().tokens, ElementsAre(11, 12, 2));
  EXPECT_TRUE(driver.Idle(p2));
  EXPECT_EQ(driver.core.attempt_count(), 0u);
}

TEST_F(FailureTest, AlreadyCommittedBeforeAnyTokenWaitsForThem) {
  const uint64_t attempt = Prefilling();
  driver.Down(p1);
  driver.Next(d1);
  driver.AlreadyCommitted(d1, attempt);
  driver.Tokens(d1, attempt, 0, {11, 2});
  driver.Finished(d1, attempt, v1::FINISH_REASON_STOP);

  EXPECT_THAT(outcome().tokens, ElementsAre(11, 2));
}

TEST_F(FailureTest, PrefillLostBeforeItWasAskedIsReplacedSilently) {
  id = driver.Ask();
  const uint64_t attempt = driver.Next(d1).admit().work().request();
  driver.Down(p1);
  driver.Admitted(d1, attempt);

  EXPECT_TRUE(driver.Next(p2).has_prefill());
  EXPECT_TRUE(driver.Idle(d1));
  EXPECT_EQ(driver.core.counters().retries[static_cast<size_t>(RetryCause::kPrefillLost)], 0u);
}

TEST_F(FailureTest, NoPrefillLeftReturnsTheBlocksAndWaits) {
  const uint64_t attempt = Prefilling();
  driver.Down(p2);
  driver.Down(p1);

  EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
  EXPECT_EQ(driver.core.queued_count(), 1u);
  driver.Up(p1, CoreDriver::Hello(v1::ROLE_PREFILL, 91));
  driver.AnswerProbes();
  Complete(d1, p1, 0, {11, 2});
  EXPECT_TRUE(outcome().finish->status.ok());
}

TEST_F(FailureTest, FailedTransferMarksThePairAndUsesAnother) {
  const uint64_t attempt = Prefilling();
  driver.PrefillFailed(p1, attempt, /*retryable=*/true, /*transfer=*/true);
  ASSERT_TRUE(driver.Next(d1).has_reopen());
  driver.Admitted(d1, attempt, 2);
  EXPECT_TRUE(driver.Next(p2).has_prefill());

  const v1::GetClusterResponse cluster = driver.core.Cluster();
  EXPECT_THAT(cluster.workers(0).reason(), HasSubstr("no KV path with worker3: it broke"));
  driver.Advance(milliseconds(300));
  EXPECT_TRUE(driver.Next(p1).has_probe()) << "after its backoff";
}

TEST_F(FailureTest, DamagedKvIsSentAgainByTheSamePrefillWorkerOnce) {
  const uint64_t attempt = Prefilling();
  v1::Event busy;
  busy.mutable_load()->mutable_load()->set_tokens_queued(500);
  driver.Event(p1, busy);
  driver.PrefillFailed(p1, attempt, /*retryable=*/true, /*transfer=*/true, 1,
                       absl::StatusCode::kDataLoss);
  ASSERT_TRUE(driver.Next(d1).has_reopen());
  driver.Admitted(d1, attempt, 2);
  ASSERT_TRUE(driver.Next(p1).has_prefill());
  EXPECT_EQ(driver.core.Cluster().workers(0).reason(), "") << "once may be chance";

  driver.PrefillFailed(p1, attempt, /*retryable=*/true, /*transfer=*/true, 2,
                       absl::StatusCode::kDataLoss);
  ASSERT_TRUE(driver.Next(d1).has_reopen());
  driver.Admitted(d1, attempt, 3);
  EXPECT_TRUE(driver.Next(p2).has_prefill());
  EXPECT_THAT(driver.core.Cluster().workers(0).reason(), HasSubstr("no KV path with worker3"));
}

TEST_F(FailureTest, DamagedKvGoesElsewhereIfItsPrefillWorkerLeaves) {
  const uint64_t attempt = Prefilling();
  v1::Event draining;
  draining.mutable_draining();
  driver.Event(p1, draining);
  driver.PrefillFailed(p1, attempt, /*retryable=*/true, /*transfer=*/true, 1,
                       absl::StatusCode::kDataLoss);
  ASSERT_TRUE(driver.Next(d1).has_reopen());
  driver.Admitted(d1, attempt, 2);
  EXPECT_TRUE(driver.Next(p2).has_prefill());
}

TEST_F(FailureTest, DamagedKvThatNobodySendsAgainWaitsInTheQueueAnew) {
  const uint64_t attempt = Prefilling();
  const Duration patience = CoreOptions{}.queue_time_max;
  driver.Advance(patience - seconds(1));
  driver.Down(p2);
  v1::Event draining;
  draining.mutable_draining();
  driver.Event(p1, draining);
  driver.PrefillFailed(p1, attempt, /*retryable=*/true, /*transfer=*/true, 1,
                       absl::StatusCode::kDataLoss);
  ASSERT_EQ(driver.core.queued_count(), 1u);

  driver.Advance(seconds(2));
  EXPECT_EQ(driver.core.queued_count(), 1u) << outcome().finish->status;

  driver.Advance(patience);
  EXPECT_EQ(driver.core.queued_count(), 0u);
}

TEST_F(FailureTest, FinalPrefillFailureEndsTheRequest) {
  const uint64_t attempt = Prefilling();
  driver.PrefillFailed(p1, attempt, /*retryable=*/false, /*transfer=*/false);

  EXPECT_EQ(outcome().code(), absl::StatusCode::kInternal);
  EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
  EXPECT_TRUE(driver.Idle(p1));
}

TEST_F(FailureTest, LostDecodeContinuesElsewhereWithTheTokensShown) {
  Decoding();
  driver.Down(d1);

  v1::Command admit = driver.commands[d2].front();
  ASSERT_EQ(admit.admit().work().tokens_size(), 6);
  EXPECT_EQ(admit.admit().work().tokens(4), 11);
  EXPECT_EQ(admit.admit().work().tokens(5), 12);
  EXPECT_EQ(admit.admit().work().prompt_tokens(), 4u);
  EXPECT_EQ(admit.admit().work().sampling().seed(), 42u);
  Complete(d2, p1, 2, {13, 2});
  EXPECT_THAT(outcome().tokens, ElementsAre(11, 12, 13, 2));
  EXPECT_EQ(outcome().text, "<11><12><13>");
  EXPECT_EQ(outcome().finish->finished.usage().generated_tokens(), 4u);
  EXPECT_EQ(outcome().finish->finished.retries(), 1u);
}

TEST_F(FailureTest, LostDecodeBeforeTheCommitCancelsThePrefill) {
  const uint64_t attempt = Prefilling();
  driver.Down(d1);

  EXPECT_EQ(driver.Next(p1).cancel().request(), attempt);
  Complete(d2, p1, 0, {11, 2});
  EXPECT_THAT(outcome().tokens, ElementsAre(11, 2));
}

TEST_F(FailureTest, WhatALostWorkerSaysLaterIsDropped) {
  const uint64_t attempt = Decoding();
  driver.Down(d1);
  driver.Up(d1, CoreDriver::Hello(v1::ROLE_DECODE, 92));
  driver.Tokens(d1, attempt, 2, {66});
  driver.Finished(d1, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_THAT(outcome().tokens, ElementsAre(11, 12));
  EXPECT_FALSE(outcome().finish.has_value());
}

TEST_F(FailureTest, LostFinishIsNotMissed) {
  const uint64_t attempt = Decoding(/*max_tokens=*/3);
  driver.Tokens(d1, attempt, 2, {13});
  driver.Down(d1);

  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_LENGTH);
  EXPECT_TRUE(driver.Idle(d2));
}

TEST_F(FailureTest, LostFinishAfterAStopTokenIsNotMissed) {
  const uint64_t attempt = Decoding();
  driver.Tokens(d1, attempt, 2, {2});
  driver.Down(d1);

  EXPECT_EQ(outcome().finish->finished.reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ(outcome().finish->finished.stop_token_id(), 2);
}

TEST_F(FailureTest, RetryableDecodeFailureAvoidsThatWorker) {
  const uint64_t attempt = Decoding();
  driver.Failed(d1, attempt, absl::StatusCode::kInternal, /*retryable=*/true);

  EXPECT_TRUE(driver.Idle(d1)) << "it has dropped the request itself";
  Complete(d2, p1, 2, {2});
  EXPECT_TRUE(outcome().finish->status.ok());
}

TEST_F(FailureTest, FinalDecodeFailureEndsTheRequest) {
  const uint64_t attempt = Decoding();
  driver.Failed(d1, attempt, absl::StatusCode::kDeadlineExceeded, /*retryable=*/false);

  EXPECT_EQ(outcome().code(), absl::StatusCode::kDeadlineExceeded);
}

TEST_F(FailureTest, SkippedTokenIsNeverShown) {
  const uint64_t attempt = Decoding();
  driver.Tokens(d1, attempt, 3, {14});

  EXPECT_THAT(outcome().tokens, ElementsAre(11, 12));
  EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
  EXPECT_EQ(driver.core.counters().retries[static_cast<size_t>(RetryCause::kTokensDiffer)], 1u);
}

TEST_F(FailureTest, EndThatTheTokensDoNotBearOutIsNotBelieved) {
  for (const v1::FinishReason reason : {v1::FINISH_REASON_LENGTH, v1::FINISH_REASON_STOP}) {
    const uint64_t attempt = Decoding();
    driver.Finished(d1, attempt, reason);

    EXPECT_FALSE(outcome().finish.has_value());
    Complete(d2, p1, 2, {2});
    EXPECT_TRUE(outcome().finish->status.ok());
  }
}

TEST_F(FailureTest, FirstTokenThatIsNoLastOneEndsNothing) {
  for (const v1::FinishReason reason : {v1::FINISH_REASON_LENGTH, v1::FINISH_REASON_STOP}) {
    const uint64_t attempt = Prefilling();
    driver.FirstToken(p1, attempt, 0, 11, 1, reason);

    EXPECT_FALSE(outcome().finish.has_value());
    EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
    Complete(d1, p2, 1, {2});
    EXPECT_TRUE(outcome().finish->status.ok());
  }
}

TEST_F(FailureTest, RetriesAreBoundedAndTheEndSaysHowToGoOn) {
  id = driver.Ask();
  for (int i = 0; i < 4; ++i) {
    ASSERT_FALSE(outcome().finish.has_value());
    for (const WorkerId decode : {d1, d2}) {
      const v1::Command command = driver.Next(decode);
      if (!command.has_admit()) continue;
      const uint64_t attempt = command.admit().work().request();
      driver.AdmittedLocal(decode, attempt);
      const uint32_t index = static_cast<uint32_t>(outcome().tokens.size());
      driver.Tokens(decode, attempt, index, {static_cast<TokenId>(11 + index)});
      driver.Failed(decode, attempt, absl::StatusCode::kInternal, true);
      break;
    }
  }

  EXPECT_THAT(outcome().tokens, ElementsAre(11, 12, 13, 14));
  EXPECT_EQ(outcome().code(), absl::StatusCode::kUnavailable);
  EXPECT_THAT(std::string(outcome().finish->status.message()),
              AllOf(HasSubstr("gave up"), HasSubstr("seed 42"), HasSubstr("4 tokens"),
                    HasSubstr("generated_ids")));
  EXPECT_EQ(driver.core.request_count(), 0u);
}

// Goal: a long stream may meet more failures than a short one, if it comes further between them.
TEST_F(FailureTest, RetriesCountAnewAfterProgress) {
  id = driver.Ask(4, 10000);
  const auto fail_after = [this](uint32_t tokens) {
    for (const WorkerId decode : {d1, d2}) {
      const v1::Command command = driver.Next(decode);
      if (!command.has_admit()) continue;
      const uint64_t attempt = command.admit().work().request();
      driver.AdmittedLocal(decode, attempt);
      driver.Tokens(decode, attempt, static_cast<uint32_t>(outcome().tokens.size()),
                    std::vector<TokenId>(tokens, 11));
      driver.Failed(decode, attempt, absl::StatusCode::kInternal, true);
      return;
    }
  };

  for (int i = 0; i < 6; ++i) fail_after(64);
  EXPECT_FALSE(outcome().finish.has_value());
  // The last one of these began the count.
  for (int i = 0; i < 2; ++i) fail_after(20);
  EXPECT_FALSE(outcome().finish.has_value());
  fail_after(20);
  EXPECT_EQ(outcome().code(), absl::StatusCode::kUnavailable);
  EXPECT_EQ(outcome().finish->finished.retries(), 8u);
}

TEST_F(FailureTest, CancelWhileReopening) {
  const uint64_t attempt = Prefilling();
  driver.Down(p1);
  driver.Next(d1);
  driver.Cancel(id);

  EXPECT_EQ(driver.Next(d1).cancel().request(), attempt);
  EXPECT_TRUE(driver.Idle(p2));
  driver.Admitted(d1, attempt, 2);
  EXPECT_TRUE(driver.Idle(p2)) << "no action for a request that has ended";
}

TEST_F(FailureTest, DecodeLostWhileReopening) {
  Prefilling();
  driver.Down(p1);
  driver.Down(d1);

  Complete(d2, p2, 0, {2});
  EXPECT_TRUE(outcome().finish->status.ok());
}

TEST_F(FailureTest, SessionThatIsReplacedWithoutABreakLosesItsRequests) {
  Decoding();
  driver.commands[d1].clear();
  driver.Up(d1, CoreDriver::Hello(v1::ROLE_DECODE, 93));
  driver.AnswerProbes();

  Complete(d2, p1, 2, {2});
  EXPECT_TRUE(outcome().finish->status.ok());
}

class LocalFallbackTest : public testing::Test {
 protected:
  LocalFallbackTest() {
    prefill = driver.AddUp(v1::ROLE_PREFILL);
    decode = driver.AddUp(v1::ROLE_DECODE, /*local_prefill=*/true);
  }
  CoreDriver driver;
  WorkerId prefill{}, decode{};
};

TEST_F(LocalFallbackTest, WaitsForThePathToBeProbed) {
  driver.Ask();
  EXPECT_TRUE(driver.Idle(decode));
  driver.AnswerProbes(true);

  EXPECT_FALSE(driver.Next(decode).admit().local_prefill());
}

TEST_F(LocalFallbackTest, PrefillsLocallyWhenThereIsNoPath) {
  driver.Ask();
  driver.AnswerProbes(false);

  EXPECT_TRUE(driver.Next(decode).admit().local_prefill());
}

TEST_F(LocalFallbackTest, UnansweredProbeIsAFailure) {
  driver.Ask();
  driver.Advance(seconds(5));

  EXPECT_TRUE(driver.Next(decode).admit().local_prefill());
}

TEST_F(LocalFallbackTest, LostPrefillReopensLocally) {
  driver.AnswerProbes();
  const RequestId id = driver.Ask(4, 2);
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.Admitted(decode, attempt);
  driver.FirstToken(prefill, attempt, 0, 11);
  driver.Down(prefill);
  const v1::Command reopen = driver.Next(decode);
  ASSERT_TRUE(reopen.has_reopen());
  EXPECT_TRUE(reopen.reopen().local_prefill());
  driver.AdmittedLocal(decode, attempt);
  driver.Tokens(decode, attempt, 0, {11, 12}, 2);
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_THAT(driver.outcomes[id].tokens, ElementsAre(11, 12));
  EXPECT_TRUE(driver.outcomes[id].finish->status.ok());
  EXPECT_EQ(driver.outcomes[id].finish->finished.prefill_worker(), "");
}

TEST_F(LocalFallbackTest, DecodeMayChooseLocalPrefillItself) {
  driver.AnswerProbes();
  const RequestId id = driver.Ask(4, 1 + 1);
  const uint64_t attempt = driver.Next(decode).admit().work().request();
  driver.AdmittedLocal(decode, attempt);
  EXPECT_TRUE(driver.Idle(prefill));
  driver.Tokens(decode, attempt, 0, {11, 12}, 1);
  driver.Finished(decode, attempt, v1::FINISH_REASON_LENGTH);

  EXPECT_TRUE(driver.outcomes[id].finish->status.ok());
}

TEST(RouterCoreRefusalTest, RefusedWorkerIsNeverUsedAndSaysWhy) {
  CoreDriver driver;
  driver.AddUp(v1::ROLE_PREFILL);
  const WorkerId other = driver.core.AddWorker("other:1", v1::ROLE_DECODE);
  v1::WorkerHello hello = CoreDriver::Hello(v1::ROLE_DECODE, 50, true);
  hello.mutable_model()->set_layout_fingerprint(8);
  driver.Up(other, hello);
  driver.Ask();

  EXPECT_TRUE(driver.Idle(other));
  const v1::WorkerStatus status = driver.core.Cluster().workers(1);
  EXPECT_EQ(status.state(), "refused");
  EXPECT_THAT(status.reason(), HasSubstr("another KV layout"));
}

}  // namespace
}  // namespace baton
