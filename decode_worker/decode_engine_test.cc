#include "decode_worker/decode_engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <set>
#include <utility>

#include "common/engine/ticket_codec.h"
#include "decode_worker/testing/decode_engine_harness.h"

namespace baton {
namespace {

using testing::ElementsAreArray;
using testing::HasSubstr;
using testing::IsEmpty;
using testing::SizeIs;

TEST(DecodeEngineTest, LocalPrefillGivesTheOraclesTokens) {
  Harness harness;
  const std::vector<TokenId> prompt = CountingPrompt(19);

  harness.Admit(GreedyWork(1, prompt, 12), /*local=*/true);
  EXPECT_FALSE(harness.last.admitted().has_ticket());
  harness.RunAll();

  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(FakeContinuation(prompt, 12)));
  EXPECT_TRUE(harness.requests[1].finished);
  EXPECT_TRUE(harness.engine.idle());
  EXPECT_EQ(harness.fixture.pool.counts().in_use, 0u);
}

// A window of ten tokens lies in at most four blocks of four.
TEST(DecodeEngineTest, SequenceKeepsOnlyBlocksWithinTheWindow) {
  Harness harness(64, 16, /*model_window=*/10);
  const std::vector<TokenId> prompt = CountingPrompt(40);

  harness.Admit(GreedyWork(1, prompt, 50), /*local=*/true);
  while (harness.engine.HasWork()) {
    ASSERT_TRUE(harness.engine.Step(harness.fixture.now));
    harness.Listen();
    harness.fixture.pool.CheckInvariants();
    if (harness.requests[1].tokens.size() >= 1) {
      EXPECT_LE(harness.fixture.pool.counts().in_use, 4u);
    }
  }

  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(FakeContinuation(prompt, 50, 97, 10)));
  // What was given back early is found again.
  EXPECT_EQ(harness.fixture.pool.counts().cached, (40u + 50u - 1) / 4);
  harness.Admit(GreedyWork(2, prompt, 5), /*local=*/true);
  EXPECT_EQ(harness.last.admitted().cached_tokens(), 36u);
  harness.RunAll();
  EXPECT_THAT(harness.requests[2].tokens, ElementsAreArray(FakeContinuation(prompt, 5, 97, 10)));
}

TEST(DecodeEngineTest, FilledLeaseGivesBackWhatIsBehindTheWindow) {
  Harness harness(64, 16, /*model_window=*/10);
  const std::vector<TokenId> prompt = CountingPrompt(40);
  harness.Admit(GreedyWork(1, prompt, 5), /*local=*/false);
  ASSERT_EQ(harness.fixture.pool.counts().receiving, 10u);

  harness.Fill(harness.fixture.transfers.opened.at(0), prompt);

  EXPECT_LE(harness.fixture.pool.counts().in_use, 4u);
  EXPECT_EQ(harness.fixture.pool.counts().receiving, 0u);
  harness.RunAll();
  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(FakeContinuation(prompt, 5, 97, 10)));
}

TEST(DecodeEngineTest, FilledLeaseRunsAndRepeatsTheFirstToken) {
  Harness harness;
  const std::vector<TokenId> prompt = CountingPrompt(10);
  harness.Admit(GreedyWork(1, prompt, 6), /*local=*/false);
  ASSERT_TRUE(harness.last.admitted().has_ticket());
  EXPECT_EQ(harness.last.admitted().ticket().prompt_tokens(), 10u);
  EXPECT_EQ(harness.fixture.pool.counts().receiving, 3u);
  EXPECT_FALSE(harness.engine.HasWork());

  harness.Fill(harness.fixture.transfers.opened[0], prompt);
  harness.RunAll();

  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(FakeContinuation(prompt, 6)));
  EXPECT_TRUE(harness.requests[1].finished);
  harness.QuiesceAll();
  EXPECT_TRUE(harness.engine.idle());
}

TEST(DecodeEngineTest, HeldPrefixIsOfferedAndNotOverwritten) {
  Harness harness;
  const std::vector<TokenId> prompt = CountingPrompt(10);
  harness.Admit(GreedyWork(1, prompt, 3), true);
  harness.RunAll();

  harness.Admit(GreedyWork(2, prompt, 3), false);

  EXPECT_EQ(harness.last.admitted().ticket().held_tokens(), 8u);
  EXPECT_EQ(harness.last.admitted().ticket().shard_heads(),
            harness.fixture.arena->layout().kv_heads)
      << "one device has all heads";
  EXPECT_EQ(harness.fixture.pool.counts().receiving, 1u);
  harness.Fill(harness.fixture.transfers.opened[0], prompt);
  harness.RunAll();
  EXPECT_THAT(harness.requests[2].tokens, ElementsAreArray(FakeContinuation(prompt, 3)));
}

TEST(DecodeEngineTest, FailedEpochIsReopenedOnFreshBlocksWhileTheOldOnesWait) {
  Harness harness;
  const std::vector<TokenId> prompt = CountingPrompt(10);
  harness.Admit(GreedyWork(1, prompt, 6), false);
  const LeaseGrant first = harness.fixture.transfers.opened[0];
  harness.engine.OnTransferEvent(LeaseFailed{.lease = first.lease,
                                             .epoch = first.epoch,
                                             .status = absl::DataLossError("checksum"),
                                             .retryable = true},
                                 harness.fixture.now);
  EXPECT_EQ(harness.fixture.pool.counts().quarantined, 3u);

  harness.Reopen(1, false);

  ASSERT_THAT(harness.fixture.transfers.opened, SizeIs(2));
  const LeaseGrant second = harness.fixture.transfers.opened[1];
  EXPECT_EQ(Raw(second.epoch), Raw(first.epoch) + 1);
  for (BlockId block : second.blocks)
    EXPECT_THAT(first.blocks, testing::Not(testing::Contains(block)));
  // A late commit of the dead epoch changes nothing.
  harness.engine.OnTransferEvent(
      LeaseFilled{.lease = first.lease, .epoch = first.epoch, .first_token = {}, .bytes = 0},
      harness.fixture.now);
  EXPECT_FALSE(harness.engine.HasWork());
  harness.Fill(second, prompt);
  harness.RunAll();
  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(FakeContinuation(prompt, 6)));
  harness.QuiesceAll();
  EXPECT_EQ(harness.fixture.pool.counts().quarantined, 0u);
}

TEST(DecodeEngineTest, ReopenWhileFillingTakesANewEpochAtOnce) {
  Harness harness;
  harness.Admit(GreedyWork(1, CountingPrompt(10), 6), false);

  harness.Reopen(1, true);
  harness.RunAll();

  EXPECT_THAT(harness.requests[1].tokens,
              ElementsAreArray(FakeContinuation(CountingPrompt(10), 6)));
  EXPECT_THAT(harness.fixture.transfers.retired, SizeIs(1));
}

TEST(DecodeEngineTest, ReopenOfARunningSequenceChangesNothing) {
  Harness harness;
  const std::vector<TokenId> prompt = CountingPrompt(10);
  harness.Admit(GreedyWork(1, prompt, 6), false);
  harness.Fill(harness.fixture.transfers.opened[0], prompt);

  harness.Reopen(1, false);

  EXPECT_TRUE(harness.last.has_already_committed());
  harness.RunAll();
  EXPECT_THAT(harness.requests[1].tokens, ElementsAreArray(FakeContinuation(prompt, 6)));
}

TEST(DecodeEngineTest, ReopenOfAnUnknownRequestIsRejected) {
  Harness harness;

  harness.Reopen(5, false);

  EXPECT_EQ(harness.last.rejected().code(), static_cast<int>(absl::StatusCode::kNotFound));
}

TEST(DecodeEngineTest, CancelledLeaseWaitsInQuarantine) {
  Harness harness;
  harness.Admit(GreedyWork(1, CountingPrompt(10), 6), false);

  harness.Cancel(1);

  EXPECT_EQ(harness.fixture.pool.counts().quarantined, 3u);
  EXPECT_FALSE(harness.engine.idle());
  harness.QuiesceAll();
  EXPECT_EQ(harness.fixture.pool.counts().free, 64u);
  EXPECT_TRUE(harness.engine.idle());
}

TEST(DecodeEngineTest, StopTokenEndsTheSequenceWithIt) {
  Harness harness;
  const std::vector<TokenId> prompt = CountingPrompt(5);
  const std::vector<TokenId> oracle = FakeContinuation(prompt, 20);
  v1::Work work = GreedyWork(1, prompt, 20);
  work.mutable_stopping()->add_stop_token_ids(oracle[7]);
  const auto end = std::find(oracle.begin(), oracle.end(), oracle[7]) + 1;

  harness.Admit(work, true);
  harness.RunAll();

  EXPECT_THAT(harness.requests[1].tokens,
              ElementsAreArray(std::vector<TokenId>(oracle.begin(), end)));
  EXPECT_EQ(harness.requests[1].others[0].finished().reason(), v1::FINISH_REASON_STOP);
}

TEST(DecodeEngineTest, RequestThatCanNeverFitIsRefusedWithTheNumbers) {
  Harness harness(/*blocks=*/4);

  harness.Admit(GreedyWork(1, CountingPrompt(10), 7), true);

  EXPECT_EQ(harness.last.rejected().code(), static_cast<int>(absl::StatusCode::kInvalidArgument));
  EXPECT_THAT(harness.last.rejected().message(), HasSubstr("5 KV blocks"));
}

TEST(DecodeEngineTest, FullPoolAsksToComeBackLater) {
  Harness harness(/*blocks=*/6);
  harness.Admit(GreedyWork(1, CountingPrompt(16), 2), false);

  harness.Admit(GreedyWork(2, CountingPrompt(12, 50), 2), false);

  EXPECT_EQ(harness.last.rejected().request(), 2u);
  EXPECT_EQ(harness.last.rejected().code(), static_cast<int>(absl::StatusCode::kResourceExhausted));
  EXPECT_GT(harness.last.rejected().retry_after_ms(), 0u);
  EXPECT_EQ(harness.engine.sequence_count(), 1u);
}

TEST(DecodeEngineTest, RefusedLeaseLeavesNothingBehind) {
  Harness harness;
  harness.fixture.transfers.next_error = absl::ResourceExhaustedError("too many leases");

  harness.Admit(GreedyWork(1, CountingPrompt(10), 6), false);

  EXPECT_TRUE(harness.last.has_rejected());
  EXPECT_TRUE(harness.engine.idle());
  EXPECT_EQ(harness.fixture.pool.counts().free, 64u);
}

TEST(DecodeEngineTest, DeadlineEndsAReservedLease) {
  Harness harness;
  v1::Work work = GreedyWork(1, CountingPrompt(10), 6);
  work.set_deadline_ms(100);
  harness.Admit(work, false);

  harness.engine.OnTick(harness.fixture.now + std::chrono::milliseconds(100));
  harness.Listen();

  EXPECT_EQ(harness.last.failed().code(), static_cast<int>(absl::StatusCode::kDeadlineExceeded));
  EXPECT_EQ(harness.fixture.pool.counts().quarantined, 3u);
}

TEST(DecodeEngineTest, CommitWithATokenOutsideTheVocabularyFailsTheSequence) {
  Harness harness;
  harness.Admit(GreedyWork(1, CountingPrompt(4), 6), false);
  const LeaseGrant grant = harness.fixture.transfers.opened[0];

  harness.engine.OnTransferEvent(
      LeaseFilled{.lease = grant.lease,
                  .epoch = grant.epoch,
                  .first_token = {.token = 1000, .index = 0, .logprobs = ""},
                  .bytes = 0},
      harness.fixture.now);
  harness.Listen();

  EXPECT_EQ(harness.last.failed().code(), static_cast<int>(absl::StatusCode::kInternal));
  EXPECT_EQ(harness.engine.sequence_count(), 0u);
}

TEST(DecodeEngineTest, ShowsOnlyLogProbabilitiesThatWereAskedFor) {
  v1::Token said;
  said.set_logprob(-1);
  for (const TokenId token : {1, 2, 3}) said.add_top_logprobs()->set_token(token);
  for (const auto& [asked, shown] : {std::pair{0u, 0}, {2u, 0}, {3u, 3}}) {
    Harness harness;
    v1::Work work = GreedyWork(1, CountingPrompt(6), 4);
    if (asked > 0) work.mutable_sampling()->set_logprobs(asked);
    harness.Admit(work, /*local=*/false);
    const LeaseGrant& grant = harness.fixture.transfers.opened.at(0);
    harness.engine.OnTransferEvent(
        LeaseFilled{.lease = grant.lease,
                    .epoch = grant.epoch,
                    .first_token = {.token = 5, .index = 0, .logprobs = said.SerializeAsString()},
                    .bytes = 0},
        harness.fixture.now);

    const v1::Token token = harness.fixture.events.Take().back().tokens().sequences(0).tokens(0);
    EXPECT_EQ(token.id(), 5);
    EXPECT_EQ(token.top_logprobs_size(), shown) << asked;
    EXPECT_EQ(token.has_logprob(), shown > 0);
  }
}

TEST(DecodeEngineTest, LocalPrefillPolicyDecides) {
  EngineFixture fixture(64);
  for (const LocalPrefill policy : {LocalPrefill::kRefused, LocalPrefill::kAlways}) {
    DecodeEngine engine(
        {.incarnation = Incarnation{1}, .local_prefill = policy}, &fixture.executor, &fixture.pool,
        &fixture.events, &fixture.transfers, [] { return Instant{}; }, [] { return 1u; });
    v1::Command command;
    *command.mutable_admit()->mutable_work() = GreedyWork(1, CountingPrompt(4), 2);
    command.mutable_admit()->set_local_prefill(policy == LocalPrefill::kRefused);

    engine.OnCommand(kRouter, command, fixture.now);

    const v1::Event answer = fixture.events.Take()[0];
    EXPECT_EQ(answer.has_rejected(), policy == LocalPrefill::kRefused);
    EXPECT_FALSE(answer.admitted().has_ticket());
  }
}

// Goal: for a few tokens behind what is cached no prefill worker is waited for.
TEST(DecodeEngineTest, ShortTailBehindACachedPrefixIsComputedHere) {
  Harness harness;
  const std::vector<TokenId> prompt = CountingPrompt(18);
  harness.Admit(GreedyWork(1, prompt, 3), /*local=*/true);
  harness.RunAll();
  const auto admit = [&](uint64_t request, const std::vector<TokenId>& tokens, uint32_t tail_max) {
    v1::Command command;
    *command.mutable_admit()->mutable_work() = GreedyWork(request, tokens, 4);
    command.mutable_admit()->set_local_prefill_tokens_max(tail_max);
    harness.engine.OnCommand(kRouter, command, harness.fixture.now);
    harness.Listen();
    return harness.last.admitted();
  };

  // Four blocks of four are cached; two tokens are left.
  EXPECT_TRUE(admit(2, prompt, 1).has_ticket());
  EXPECT_FALSE(admit(3, prompt, 2).has_ticket());
  EXPECT_EQ(harness.last.admitted().cached_tokens(), 16u);
  EXPECT_TRUE(admit(4, CountingPrompt(2, 50), 8).has_ticket()) << "nothing of it is cached";
  harness.RunAll();
  EXPECT_THAT(harness.requests[3].tokens, ElementsAreArray(FakeContinuation(prompt, 4)));
}

TEST(DecodeEngineTest, SessionLossRetiresEverythingOfThatRouter) {
  Harness harness;
  harness.Admit(GreedyWork(1, CountingPrompt(10), 6), false);
  harness.Admit(GreedyWork(2, CountingPrompt(10, 20), 6), true);

  harness.engine.OnSessionClosed(kRouter);
  harness.QuiesceAll();

  EXPECT_TRUE(harness.engine.idle());
  EXPECT_FALSE(harness.engine.HasWork());
  EXPECT_EQ(harness.fixture.pool.counts().in_use, 0u);
}

TEST(DecodeEngineTest, ModelErrorFailsTheSequencesOfTheStep) {
  Harness harness;
  harness.Admit(GreedyWork(1, CountingPrompt(4), 6), true);
  harness.fixture.model.FailNext(absl::InternalError("bad day\xff"));

  harness.RunAll();

  EXPECT_THAT(harness.last.failed().message(), HasSubstr("bad day?"));
  EXPECT_TRUE(harness.engine.idle());
}

TEST(DecodeEngineTest, DrainingWorkerRefusesNewWorkAndFinishesTheOld) {
  Harness harness;
  harness.Admit(GreedyWork(1, CountingPrompt(4), 6), true);
  harness.engine.BeginDrain();

  harness.Admit(GreedyWork(2, CountingPrompt(4), 6), true);
  EXPECT_EQ(harness.last.rejected().code(), static_cast<int>(absl::StatusCode::kUnavailable));
  harness.RunAll();

  EXPECT_TRUE(harness.requests[1].finished);
}

// Goal: whatever mix of local and remote prompts, cancels, lost epochs and reopens comes, every
// request that is left to finish gives the oracle's tokens once, and every block comes home.
class DecodeEngineRandomTest : public testing::TestWithParam<uint32_t> {};

TEST_P(DecodeEngineRandomTest, StreamsEqualTheOracle) {
  std::mt19937 random(GetParam());
  const auto below = [&random](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
  Harness harness(/*blocks=*/40, /*sequences_max=*/8);
  std::map<uint64_t, std::vector<TokenId>> prompts;
  std::map<uint64_t, bool> live;  // Admitted and not cancelled.
  size_t next_grant = 0;
  uint64_t next_request = 1;

  for (int step = 0; step < 400; ++step) {
    switch (below(6)) {
      case 0: {
        const uint64_t request = next_request++;
        // Few distinct prompts, so that prefixes are shared.
        prompts[request] = CountingPrompt(1 + below(20), static_cast<TokenId>(below(2) * 40));
        harness.last.Clear();
        harness.Admit(GreedyWork(request, prompts[request], 1 + below(30)), below(2) == 0);
        live[request] = harness.last.has_admitted();
        break;
      }
      case 1:
        if (next_grant < harness.fixture.transfers.opened.size()) {
          const LeaseGrant grant = harness.fixture.transfers.opened[next_grant++];
          // Nothing lands in an epoch that has quiesced: its blocks may be somebody else's.
          if (harness.quiesced.contains({grant.lease, grant.epoch})) break;
          if (below(4) == 0) {
            harness.engine.OnTransferEvent(LeaseAborted{grant.lease, grant.epoch},
                                           harness.fixture.now);
          } else {
            // The prompt is the one whose lease this is: leases count up with admissions.
            for (const auto& [request, is_live] : live) {
              if (is_live && harness.lease_of[request] == Raw(grant.lease)) {
                harness.Fill(grant, prompts[request]);
              }
            }
          }
        }
        break;
      case 2:
        if (!live.empty()) {
          auto it = live.begin();
          std::advance(it, below(static_cast<uint32_t>(live.size())));
          if (below(4) == 0) {
            harness.Cancel(it->first);
            it->second = false;
          } else if (it->second && !harness.requests[it->first].finished) {
            harness.Reopen(it->first, below(2) == 0);
          }
        }
        break;
      case 3:
        if (below(2) == 0) harness.QuiesceAll();
        break;
      default:
        if (harness.engine.HasWork()) harness.engine.Step(harness.fixture.now);
        harness.Listen();
        break;
    }
    harness.fixture.pool.CheckInvariants();
  }
  for (const auto& [request, is_live] : live) {
    if (is_live && !harness.requests[request].finished) harness.Reopen(request, true);
  }
  harness.QuiesceAll();
  harness.RunAll();
  harness.QuiesceAll();

  for (const auto& [request, is_live] : live) {
    EXPECT_TRUE(harness.requests[request].finished || !is_live) << "request " << request;
  }
  for (const auto& [request, heard] : harness.requests) {
    const auto oracle =
        FakeContinuation(prompts[request], static_cast<uint32_t>(heard.tokens.size()));
    EXPECT_THAT(heard.tokens, ElementsAreArray(oracle)) << "request " << request;
  }
  EXPECT_EQ(harness.fixture.pool.counts().in_use, 0u);
  EXPECT_EQ(harness.fixture.pool.counts().quarantined, 0u);
  EXPECT_EQ(harness.fixture.pool.counts().receiving, 0u);
}

INSTANTIATE_TEST_SUITE_P(Seeds, DecodeEngineRandomTest, testing::Range(0u, 50u));

}  // namespace
}  // namespace baton
