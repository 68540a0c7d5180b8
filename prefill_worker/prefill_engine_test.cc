#include "prefill_worker/prefill_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/engine/testing/engine_fixture.h"
#include "common/engine/ticket_codec.h"

namespace baton {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

constexpr Incarnation kRouter{7};

class PrefillEngineTest : public testing::Test {
 protected:
  explicit PrefillEngineTest(uint32_t blocks = 64)
      : fixture_(blocks),
        engine_({.chunk_tokens = 8, .jobs_max = 4}, &fixture_.executor, &fixture_.pool,
                &fixture_.events, &fixture_.transfers, [] { return Instant{}; }) {}

  static v1::Command PrefillCommand(const v1::Work& work, bool with_ticket) {
    v1::Command command;
    *command.mutable_prefill()->mutable_work() = work;
    if (with_ticket) {
      *command.mutable_prefill()->mutable_ticket() =
          TicketToProto({.address = "decode",
                         .incarnation = Incarnation{1},
                         .lease = LeaseId{1},
                         .nonce = {},
                         .epoch = Epoch{1},
                         .held_tokens = 0,
                         .prompt_tokens = static_cast<uint32_t>(work.tokens_size()),
                         .layout_fingerprint = 1});
    }
    return command;
  }

  void Send(const v1::Command& command) { engine_.OnCommand(kRouter, command, fixture_.now); }
  void RunAll() {
    for (int step = 0; engine_.HasWork(); ++step) {
      ASSERT_LT(step, 1000);
      ASSERT_TRUE(engine_.Step(fixture_.now));
      fixture_.pool.CheckInvariants();
    }
  }

  EngineFixture fixture_;
  PrefillEngine engine_;
};

TEST_F(PrefillEngineTest, FirstTokenIsTheOraclesAndTheKvIsPushedLayerByLayer) {
  const std::vector<TokenId> prompt = CountingPrompt(10);
  Send(PrefillCommand(GreedyWork(1, prompt, 5), /*with_ticket=*/true));

  RunAll();

  const std::vector<v1::Event> events = fixture_.events.Take();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0].first_token().token().id(), FakeContinuation(prompt, 1)[0]);
  EXPECT_EQ(events[0].first_token().token().index(), 0u);
  // Two chunks of three layers each: every (layer, token) once.
  ASSERT_THAT(fixture_.transfers.pushed, SizeIs(6));
  EXPECT_EQ(fixture_.transfers.pushed[0].layers, (IndexRange{0, 1}));
  EXPECT_EQ(fixture_.transfers.pushed[0].tokens, (IndexRange{0, 8}));
  EXPECT_EQ(fixture_.transfers.pushed[5].layers, (IndexRange{2, 3}));
  EXPECT_EQ(fixture_.transfers.pushed[5].tokens, (IndexRange{8, 10}));
  ASSERT_THAT(fixture_.transfers.committed, SizeIs(1));
  EXPECT_EQ(fixture_.transfers.committed[0].second.token, events[0].first_token().token().id());
}

TEST_F(PrefillEngineTest, BlocksStayPinnedUntilTheTransferIsReleased) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(10), 5), true));
  RunAll();
  const TransferId id = fixture_.transfers.begun[0].id;

  engine_.OnTransferEvent(TransferAcked{.id = id}, fixture_.now);
  EXPECT_EQ(fixture_.pool.counts().in_use, 3u);
  EXPECT_FALSE(engine_.idle());
  engine_.OnTransferEvent(TransferReleased{.id = id}, fixture_.now);

  EXPECT_EQ(fixture_.pool.counts().in_use, 0u);
  EXPECT_EQ(fixture_.pool.counts().cached, 2u);
  EXPECT_TRUE(engine_.idle());
  EXPECT_TRUE(fixture_.events.Take().back().has_prefill_done());
}

TEST_F(PrefillEngineTest, LoadTellsPromptsUnderWayFromThoseThatWait) {
  for (uint64_t request = 1; request <= 3; ++request) {
    const auto first = static_cast<TokenId>(10 * request);
    Send(PrefillCommand(GreedyWork(request, CountingPrompt(8, first), 5), true));
  }
  EXPECT_EQ(engine_.Load().sequences_running(), 0u);
  EXPECT_EQ(engine_.Load().sequences_waiting(), 3u);

  // A step has room for one of them.
  ASSERT_TRUE(engine_.Step(fixture_.now));
  EXPECT_EQ(engine_.Load().sequences_running(), 1u) << "its KV is on the way";
  EXPECT_EQ(engine_.Load().sequences_waiting(), 2u);
  Send(PrefillCommand(GreedyWork(4, CountingPrompt(20, 50), 5), true));
  for (int step = 0; step < 3; ++step) ASSERT_TRUE(engine_.Step(fixture_.now));

  EXPECT_EQ(engine_.Load().sequences_running(), 4u) << "the last one is being computed";
  EXPECT_EQ(engine_.Load().sequences_waiting(), 0u);
}

TEST_F(PrefillEngineTest, SecondPromptPushesTheCachedPrefixAtOnceAndComputesTheRest) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(10), 5), true));
  RunAll();
  fixture_.events.Take();
  fixture_.transfers.pushed.clear();

  Send(PrefillCommand(GreedyWork(2, CountingPrompt(10), 5), true));
  RunAll();

  ASSERT_THAT(fixture_.transfers.pushed, SizeIs(4));
  EXPECT_EQ(fixture_.transfers.pushed[0].layers, (IndexRange{0, 3}));
  EXPECT_EQ(fixture_.transfers.pushed[0].tokens, (IndexRange{0, 8}));
  const std::vector<v1::Event> events = fixture_.events.Take();
  EXPECT_EQ(events[0].first_token().cached_tokens(), 8u);
  EXPECT_EQ(events[0].first_token().token().id(), FakeContinuation(CountingPrompt(10), 1)[0]);
}

TEST_F(PrefillEngineTest, TerminalFirstTokenAbortsTheTransfer) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(5), 1), true));

  RunAll();

  EXPECT_EQ(fixture_.events.Take()[0].first_token().terminal(), v1::FINISH_REASON_LENGTH);
  EXPECT_THAT(fixture_.transfers.aborted, SizeIs(1));
  EXPECT_THAT(fixture_.transfers.committed, IsEmpty());
}

TEST_F(PrefillEngineTest, OneTokenNeedsNoTicket) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(5), 1), false));

  RunAll();

  EXPECT_TRUE(fixture_.events.Take()[0].has_first_token());
  EXPECT_TRUE(engine_.idle());
  EXPECT_THAT(fixture_.transfers.begun, IsEmpty());
}

TEST_F(PrefillEngineTest, ForcedTokensAreInputAndTheIndexGoesOn) {
  const std::vector<TokenId> prompt = CountingPrompt(6);
  const std::vector<TokenId> oracle = FakeContinuation(prompt, 3);
  v1::Work work = GreedyWork(1, prompt, 8);
  work.add_tokens(oracle[0]);
  work.add_tokens(oracle[1]);
  Send(PrefillCommand(work, true));

  RunAll();

  const v1::Token token = fixture_.events.Take()[0].first_token().token();
  EXPECT_EQ(token.index(), 2u);
  EXPECT_EQ(token.id(), oracle[2]);
}

TEST_F(PrefillEngineTest, CancelAbortsAndKeepsTheBlocksUntilReleased) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(20), 5), true));
  ASSERT_TRUE(engine_.Step(fixture_.now));
  v1::Command cancel;
  cancel.mutable_cancel()->set_request(1);

  Send(cancel);

  EXPECT_FALSE(engine_.HasWork());
  ASSERT_THAT(fixture_.transfers.aborted, SizeIs(1));
  EXPECT_GT(fixture_.pool.counts().in_use, 0u);
  engine_.OnTransferEvent(TransferReleased{.id = fixture_.transfers.aborted[0]}, fixture_.now);
  EXPECT_EQ(fixture_.pool.counts().in_use, 0u);
}

TEST_F(PrefillEngineTest, FailedTransferIsReportedAndTheKvStaysCached) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(10), 5), true));
  RunAll();
  fixture_.events.Take();
  const TransferId id = fixture_.transfers.begun[0].id;

  engine_.OnTransferEvent(
      TransferFailed{.id = id, .status = absl::UnavailableError("gone"), .retryable = true},
      fixture_.now);
  engine_.OnTransferEvent(TransferReleased{.id = id}, fixture_.now);

  const std::vector<v1::Event> events = fixture_.events.Take();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_TRUE(events[0].prefill_failed().retryable());
  EXPECT_TRUE(events[0].prefill_failed().transfer());
  EXPECT_EQ(fixture_.pool.counts().cached, 2u);
  EXPECT_TRUE(engine_.idle());
}

// The way to the decode worker is not to blame for a queue that is full here.
TEST_F(PrefillEngineTest, TransferThatIsRefusedHereSaysNothingAboutThePair) {
  for (const absl::Status& refusal : {absl::ResourceExhaustedError("4096 transfers are open"),
                                      absl::UnavailableError("takes no commands now")}) {
    Send(PrefillCommand(GreedyWork(1, CountingPrompt(10), 5), true));
    fixture_.transfers.next_error = refusal;
    RunAll();

    const std::vector<v1::Event> events = fixture_.events.Take();
    ASSERT_THAT(events, SizeIs(1));
    EXPECT_EQ(events[0].prefill_failed().code(), static_cast<int>(refusal.code()));
    EXPECT_TRUE(events[0].prefill_failed().retryable());
    EXPECT_FALSE(events[0].prefill_failed().transfer());
  }
}

TEST_F(PrefillEngineTest, PushThatIsRefusedHereSaysNothingAboutThePair) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(10), 5), true));
  ASSERT_TRUE(engine_.Step(fixture_.now));
  fixture_.transfers.next_error = absl::ResourceExhaustedError("the queue is full");
  RunAll();

  const std::vector<v1::Event> events = fixture_.events.Take();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_TRUE(events[0].prefill_failed().retryable());
  EXPECT_FALSE(events[0].prefill_failed().transfer());
}

TEST_F(PrefillEngineTest, SessionLossRetiresOnlyThatRoutersWork) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(10), 5), true));
  engine_.OnCommand(Incarnation{8}, PrefillCommand(GreedyWork(1, CountingPrompt(10, 30), 5), true),
                    fixture_.now);

  engine_.OnSessionClosed(kRouter);

  EXPECT_EQ(engine_.job_count(), 1u);
  RunAll();
  ASSERT_THAT(fixture_.events.events, SizeIs(1));
  EXPECT_EQ(fixture_.events.events[0].first, Incarnation{8});
}

TEST_F(PrefillEngineTest, DeadlineEndsTheJob) {
  v1::Work work = GreedyWork(1, CountingPrompt(10), 5);
  work.set_deadline_ms(100);
  Send(PrefillCommand(work, true));

  engine_.OnTick(fixture_.now + std::chrono::milliseconds(99));
  EXPECT_TRUE(engine_.HasWork());
  engine_.OnTick(fixture_.now + std::chrono::milliseconds(100));

  EXPECT_FALSE(engine_.HasWork());
  EXPECT_EQ(fixture_.events.Take()[0].prefill_failed().code(),
            static_cast<int>(absl::StatusCode::kDeadlineExceeded));
}

// The router then lets it wait; a failure would cost the request a retry.
TEST_F(PrefillEngineTest, OneJobTooManyIsRejectedForLackOfRoom) {
  for (uint64_t request = 1; request <= 5; ++request) {
    Send(PrefillCommand(GreedyWork(request, CountingPrompt(4), 2), true));
  }

  const std::vector<v1::Event> events = fixture_.events.Take();
  ASSERT_THAT(events, SizeIs(1));
  EXPECT_EQ(events[0].rejected().request(), 5u);
  EXPECT_EQ(events[0].rejected().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_GT(events[0].rejected().retry_after_ms(), 0u);
  EXPECT_EQ(engine_.job_count(), 4u);
}

TEST_F(PrefillEngineTest, PromptThatNeverFitsIsRefusedWithTheNumbers) {
  EngineFixture small(2);
  PrefillEngine engine({.chunk_tokens = 8, .jobs_max = 4}, &small.executor, &small.pool,
                       &small.events, &small.transfers, [] { return Instant{}; });

  engine.OnCommand(kRouter, PrefillCommand(GreedyWork(1, CountingPrompt(9), 2), true), small.now);

  const v1::PrefillFailed failed = small.events.Take()[0].prefill_failed();
  EXPECT_FALSE(failed.retryable());
  EXPECT_THAT(failed.message(), HasSubstr("3 KV blocks"));
}

TEST_F(PrefillEngineTest, ModelErrorFailsTheJob) {
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(4), 2), true));
  fixture_.model.FailNext(absl::InternalError("bad day\xff"));

  EXPECT_TRUE(engine_.Step(fixture_.now));

  EXPECT_THAT(fixture_.events.Take()[0].prefill_failed().message(), HasSubstr("bad day?"));
  EXPECT_FALSE(engine_.HasWork());
}

TEST_F(PrefillEngineTest, DrainingWorkerRefusesNewWork) {
  engine_.BeginDrain();

  Send(PrefillCommand(GreedyWork(1, CountingPrompt(4), 2), true));

  EXPECT_EQ(fixture_.events.Take()[0].prefill_failed().code(),
            static_cast<int>(absl::StatusCode::kUnavailable));
}

TEST_F(PrefillEngineTest, ProbeIsAnswered) {
  v1::Command command;
  command.mutable_probe()->set_probe(42);
  Send(command);

  engine_.OnTransferEvent(
      ProbeFinished{.id = fixture_.transfers.probed[0], .status = {}, .round_trip_ms = 1.5},
      fixture_.now);

  const v1::ProbeResult result = fixture_.events.Take()[0].probe_result();
  EXPECT_EQ(result.probe(), 42u);
  EXPECT_TRUE(result.ok());
}

class SmallPoolTest : public PrefillEngineTest {
 protected:
  SmallPoolTest() : PrefillEngineTest(/*blocks=*/16) {}
};

// The urgent one must not stop the one whose blocks it waits for.
TEST_F(SmallPoolTest, UrgentPromptWithoutRoomWaitsForTheStartedOne) {
  const uint32_t tokens = 10 * fixture_.arena->layout().block_tokens;
  Send(PrefillCommand(GreedyWork(1, CountingPrompt(tokens), 5), /*with_ticket=*/false));
  ASSERT_TRUE(engine_.Step(fixture_.now));
  v1::Work urgent = GreedyWork(2, CountingPrompt(tokens, 9), 5);
  urgent.set_priority(5);
  Send(PrefillCommand(urgent, /*with_ticket=*/false));

  RunAll();

  EXPECT_EQ(engine_.stats().finished, 2u);
}

TEST_F(PrefillEngineTest, TicketForAnotherPromptIsRefused) {
  v1::Command command = PrefillCommand(GreedyWork(1, CountingPrompt(10), 5), /*with_ticket=*/true);
  command.mutable_prefill()->mutable_ticket()->set_prompt_tokens(9);
  Send(command);

  const v1::Event event = fixture_.events.Take().back();
  EXPECT_EQ(event.prefill_failed().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_FALSE(event.prefill_failed().retryable());
  EXPECT_FALSE(engine_.HasWork());
}

}  // namespace
}  // namespace baton
