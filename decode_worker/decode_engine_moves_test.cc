// Sequences that move to another decode worker with their KV.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "common/engine/ticket_codec.h"
#include "decode_worker/testing/decode_engine_harness.h"

namespace baton {
namespace {

using testing::ElementsAreArray;
using testing::IsEmpty;
using testing::SizeIs;

constexpr uint32_t kTokens = 12;

// One sequence that has said `said` of its tokens.
class MovesTest : public testing::Test {
 protected:
  void Start(uint32_t said, v1::Work work) {
    harness.Admit(work, /*local=*/true);
    while (harness.requests[1].tokens.size() < said) Step();
  }
  void Start(uint32_t said) { Start(said, GreedyWork(1, prompt, kTokens)); }
  void Step() {
    ASSERT_TRUE(harness.engine.Step(harness.fixture.now));
    harness.fixture.pool.CheckInvariants();
    harness.Listen();
  }
  // Another worker has promised room for the first `tokens` tokens.
  void Migrate(uint32_t tokens, uint64_t nonce = 77) {
    const Ticket ticket = {.address = "elsewhere",
                           .incarnation = Incarnation{9},
                           .lease = LeaseId{5},
                           .nonce = {.high = 1, .low = nonce},
                           .epoch = Epoch{1},
                           .held_tokens = 0,
                           .prompt_tokens = tokens,
                           .layout_fingerprint = 0,
                           .shard_heads = 0};
    v1::Command command;
    command.mutable_migrate()->set_request(1);
    *command.mutable_migrate()->mutable_ticket() = TicketToProto(ticket);
    harness.engine.OnCommand(kRouter, command, harness.fixture.now);
    harness.Listen();
  }
  void Tell(const TransferEvent& event) {
    harness.engine.OnTransferEvent(event, harness.fixture.now);
    harness.fixture.pool.CheckInvariants();
    harness.Listen();
  }

  Harness harness;
  RecordedTransfers& transfers = harness.fixture.transfers;
  const std::vector<TokenId> prompt = CountingPrompt(10);
  const std::vector<TokenId> expected = FakeContinuation(prompt, kTokens);
};

TEST_F(MovesTest, PushesTheTicketsTokensAndCommitsTheOneThatFollows) {
  Start(/*said=*/5);

  Migrate(/*tokens=*/13);

  ASSERT_THAT(transfers.begun, SizeIs(1));
  EXPECT_THAT(transfers.begun[0].blocks, SizeIs(4));
  ASSERT_THAT(transfers.pushed, SizeIs(1));
  EXPECT_EQ(transfers.pushed[0].tokens, (IndexRange{0, 13}));
  ASSERT_THAT(transfers.committed, SizeIs(1));
  EXPECT_EQ(transfers.committed[0].second.token, expected[3]);
  EXPECT_EQ(transfers.committed[0].second.index, 3u);
  EXPECT_FALSE(harness.engine.Step(harness.fixture.now))
      << "there must not be two that go on with it";
}

TEST_F(MovesTest, WaitsForTheTokenThatFollows) {
  Start(/*said=*/5);

  Migrate(/*tokens=*/15);
  EXPECT_THAT(transfers.begun, IsEmpty());
  Step();

  ASSERT_THAT(transfers.committed, SizeIs(1));
  EXPECT_EQ(transfers.committed[0].second.token, expected[5]);
}

TEST_F(MovesTest, ForgetsTheSequenceOnceItIsThereButKeepsBlocksThatAreRead) {
  Start(/*said=*/5);
  Migrate(/*tokens=*/13);

  Tell(TransferAcked{.id = transfers.begun[0].id, .bytes = 100});

  EXPECT_TRUE(harness.last.has_migrated());
  EXPECT_EQ(harness.last.migrated().nonce(), 77u);
  EXPECT_EQ(harness.engine.sequence_count(), 0u);
  EXPECT_FALSE(harness.engine.Step(harness.fixture.now));
  EXPECT_FALSE(harness.engine.idle());
  EXPECT_EQ(harness.fixture.pool.counts().in_use, 4u);
  Tell(TransferReleased{.id = transfers.begun[0].id});
  EXPECT_TRUE(harness.engine.idle());
  EXPECT_EQ(harness.fixture.pool.counts().in_use, 0u);
}

TEST_F(MovesTest, RunsOnWhenTheTransferFails) {
  Start(/*said=*/5);
  Migrate(/*tokens=*/13);

  Tell(TransferFailed{
      .id = transfers.begun[0].id, .status = absl::UnavailableError("lost"), .retryable = true});
  Tell(TransferReleased{.id = transfers.begun[0].id});

  EXPECT_TRUE(harness.last.has_migrate_failed());
  EXPECT_TRUE(harness.last.migrate_failed().transfer());
  harness.RunAll();
  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(expected));
  EXPECT_TRUE(harness.engine.idle());
}

TEST_F(MovesTest, RunsOnWhenTheTicketIsRefused) {
  Start(/*said=*/5);
  transfers.next_error = absl::InvalidArgumentError("another layout");

  Migrate(/*tokens=*/13);

  EXPECT_TRUE(harness.last.has_migrate_failed());
  harness.RunAll();
  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(expected));
}

TEST_F(MovesTest, ALaterTicketIsTriedWhenTheFirstMoveFails) {
  Start(/*said=*/5);
  Migrate(/*tokens=*/13, /*nonce=*/1);

  Migrate(/*tokens=*/14, /*nonce=*/2);
  EXPECT_THAT(transfers.begun, SizeIs(1));
  Tell(TransferFailed{
      .id = transfers.begun[0].id, .status = absl::UnavailableError("lost"), .retryable = true});

  EXPECT_EQ(harness.last.migrate_failed().nonce(), 1u);
  ASSERT_THAT(transfers.begun, SizeIs(2));
  EXPECT_EQ(transfers.begun[1].ticket.nonce.low, 2u);
}

TEST_F(MovesTest, RunsOnWhenTheMoveIsCalledOff) {
  Start(/*said=*/5);
  Migrate(/*tokens=*/13);
  v1::Command command;
  command.mutable_migrate()->set_request(1);

  harness.engine.OnCommand(kRouter, command, harness.fixture.now);

  EXPECT_THAT(transfers.aborted, SizeIs(1));
  harness.RunAll();
  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(expected));
  Tell(TransferReleased{.id = transfers.begun[0].id});
  EXPECT_TRUE(harness.engine.idle());
}

TEST_F(MovesTest, RunsOnWhenTheTransferTakesTooLong) {
  Start(/*said=*/5);
  Migrate(/*tokens=*/13);

  harness.engine.OnTick(harness.fixture.now + std::chrono::seconds(60));
  harness.Listen();

  EXPECT_TRUE(harness.last.has_migrate_failed());
  EXPECT_THAT(transfers.aborted, SizeIs(1));
  harness.RunAll();
  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(expected));
}

TEST_F(MovesTest, CancelAbortsTheTransfer) {
  Start(/*said=*/5);
  Migrate(/*tokens=*/13);

  harness.Cancel(1);

  EXPECT_THAT(transfers.aborted, SizeIs(1));
  EXPECT_FALSE(harness.engine.Step(harness.fixture.now));
  EXPECT_EQ(harness.fixture.pool.counts().in_use, 4u);
  Tell(TransferReleased{.id = transfers.begun[0].id});
  EXPECT_TRUE(harness.engine.idle());
}

TEST_F(MovesTest, TakesTheLogProbabilitiesAlong) {
  v1::Work work = GreedyWork(1, prompt, kTokens);
  work.mutable_sampling()->set_logprobs(2);
  Start(/*said=*/5, work);

  Migrate(/*tokens=*/13);

  ASSERT_THAT(transfers.committed, SizeIs(1));
  v1::Token token;
  ASSERT_TRUE(token.ParseFromString(transfers.committed[0].second.logprobs));
  EXPECT_EQ(token.index(), 3u);
  EXPECT_EQ(token.id(), expected[3]);
  EXPECT_EQ(token.top_logprobs_size(), 2);
}

TEST_F(MovesTest, ReopenOfAMovingSequenceChangesNothing) {
  Start(/*said=*/5);
  Migrate(/*tokens=*/13);

  harness.Reopen(1, /*local=*/true);

  EXPECT_TRUE(harness.last.has_already_committed());
}

TEST_F(MovesTest, ATicketForLessThanThePromptIsRefused) {
  Start(/*said=*/5);

  Migrate(/*tokens=*/9);

  EXPECT_TRUE(harness.last.has_migrate_failed());
  EXPECT_THAT(transfers.begun, IsEmpty());
}

}  // namespace
}  // namespace baton
