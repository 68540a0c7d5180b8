#include "router/placement.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

class PlacementTest : public testing::Test {
 protected:
  WorkerEntry& Add(v1::Role role, bool local_prefill = false) {
    const WorkerId id = workers.Add("worker", role);
    v1::WorkerHello hello;
    hello.set_role(role);
    hello.set_incarnation(Raw(id));
    hello.set_local_prefill(local_prefill);
    hello.mutable_model()->set_block_tokens(16);
    workers.Up(id, hello);
    return *workers.Find(id);
  }
  void Connect(const WorkerEntry& prefill, const WorkerEntry& decode) {
    pairs.Succeeded(prefill.id, decode.id);
  }
  std::optional<Placement> Choose() { return ChoosePlacement(workers, pairs, need, now); }

  WorkerTable workers{ClusterPolicy{}};
  PairTable pairs{PairOptions{}};
  PlacementNeed need{.tokens = 100, .avoid = {}, .prefill_tokens = 100, .prefill_tokens_max = 1000};
  Instant now{std::chrono::seconds(100)};
};

TEST_F(PlacementTest, NobodyNowhere) { EXPECT_FALSE(Choose().has_value()); }

TEST_F(PlacementTest, FewestOutstandingThenMostRoom) {
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  WorkerEntry& d1 = Add(v1::ROLE_DECODE);
  WorkerEntry& d2 = Add(v1::ROLE_DECODE);
  Connect(p, d1);
  Connect(p, d2);
  d1.load.set_blocks_total(100);
  d1.load.set_blocks_free(50);
  d2.load.set_blocks_total(100);
  d2.load.set_blocks_free(40);
  d2.load.set_blocks_cached(20);
  EXPECT_EQ(Choose()->decode, d2.id);
  d2.attempts = 1;

  EXPECT_EQ(Choose()->decode, d1.id);
  EXPECT_EQ(Choose()->prefill, p.id);
}

TEST_F(PlacementTest, NoRoomForThePromptMeansNoPlace) {
  WorkerEntry& d = Add(v1::ROLE_DECODE, true);
  d.attempts = 1;
  d.load.set_blocks_total(100);
  d.load.set_blocks_free(7);
  EXPECT_TRUE(Choose().has_value()) << "101 tokens take 7 blocks";
  d.blocks_pledged = 1;

  EXPECT_FALSE(Choose().has_value());
}

TEST_F(PlacementTest, AtMostAsManySequencesAsTheWorkerTakes) {
  WorkerEntry& d = Add(v1::ROLE_DECODE, true);
  d.hello.set_sequences_max(2);
  d.attempts = 1;
  EXPECT_TRUE(Choose().has_value());
  d.attempts = 2;

  EXPECT_FALSE(Choose().has_value());
}

TEST_F(PlacementTest, AtMostAsManyPromptsAsThePrefillWorkerTakes) {
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  WorkerEntry& d = Add(v1::ROLE_DECODE);
  Connect(p, d);
  p.hello.set_sequences_max(2);
  p.attempts = 1;
  EXPECT_TRUE(Choose().has_value());
  p.attempts = 2;

  EXPECT_FALSE(Choose().has_value());
  EXPECT_FALSE(ChoosePrefill(workers, pairs, d.id, need.tokens, std::nullopt, now).has_value());
}

TEST_F(PlacementTest, WorkerThatSaidFullIsLeftAlone) {
  WorkerEntry& d = Add(v1::ROLE_DECODE, true);
  d.full_until = now + std::chrono::milliseconds(10);
  EXPECT_FALSE(Choose().has_value());
  now = d.full_until;

  EXPECT_TRUE(Choose().has_value());
}

TEST_F(PlacementTest, LeastQueuedPrefillWorkerByOwnAndReportedLoad) {
  WorkerEntry& p1 = Add(v1::ROLE_PREFILL);
  WorkerEntry& p2 = Add(v1::ROLE_PREFILL);
  WorkerEntry& d = Add(v1::ROLE_DECODE);
  Connect(p1, d);
  Connect(p2, d);
  p1.prefill_tokens = 10;
  EXPECT_EQ(Choose()->prefill, p2.id);
  p2.load.set_tokens_queued(20);

  EXPECT_EQ(Choose()->prefill, p1.id);
}

TEST_F(PlacementTest, OnlyHealthyPairs) {
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  WorkerEntry& d1 = Add(v1::ROLE_DECODE, true);
  WorkerEntry& d2 = Add(v1::ROLE_DECODE);
  EXPECT_FALSE(Choose().has_value()) << "waits for the probe, although one could prefill itself";
  Connect(p, d2);
  d2.attempts = 5;
  EXPECT_EQ(Choose()->decode, d2.id);
  pairs.Failed(p.id, d1.id, "", now);
  pairs.Failed(p.id, d2.id, "", now);

  EXPECT_EQ(Choose()->decode, d1.id);
  EXPECT_FALSE(Choose()->prefill.has_value());
}

TEST_F(PlacementTest, BusyPrefillWorkerIsWaitedFor) {
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  WorkerEntry& d = Add(v1::ROLE_DECODE, true);
  Connect(p, d);
  p.prefill_tokens = 950;
  EXPECT_FALSE(Choose().has_value());
  p.prefill_tokens = 900;

  EXPECT_EQ(Choose()->prefill, p.id);
}

TEST_F(PlacementTest, AvoidedWorkersComeLast) {
  WorkerEntry& d1 = Add(v1::ROLE_DECODE, true);
  WorkerEntry& d2 = Add(v1::ROLE_DECODE, true);
  d2.attempts = 9;
  need.avoid = d1.id;
  EXPECT_EQ(Choose()->decode, d2.id);
  d2.state = WorkerState::kDraining;

  EXPECT_EQ(Choose()->decode, d1.id);
}

// Its prefix cache has the KV; that of another process at the same address has not.
TEST_F(PlacementTest, ProcessThatRanItBeforeComesFirst) {
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  WorkerEntry& d1 = Add(v1::ROLE_DECODE);
  WorkerEntry& d2 = Add(v1::ROLE_DECODE);
  Connect(p, d1);
  Connect(p, d2);
  d2.attempts = 1;
  need.home = {.worker = d2.id, .incarnation = d2.incarnation()};
  EXPECT_EQ(Choose()->decode, d2.id);

  need.home->incarnation = Incarnation{99};
  EXPECT_EQ(Choose()->decode, d1.id);
}

TEST_F(PlacementTest, OneTokenNeedsOnlyAPrefillWorkerWhereThereIsOne) {
  WorkerEntry& d = Add(v1::ROLE_DECODE, true);
  need.first_token_only = true;
  EXPECT_EQ(Choose()->decode, d.id);
  WorkerEntry& p = Add(v1::ROLE_PREFILL);

  EXPECT_FALSE(Choose()->decode.has_value());
  EXPECT_EQ(Choose()->prefill, p.id);
}

TEST_F(PlacementTest, WorkersThatAreTooSmallAreNotAsked) {
  WorkerEntry& small = Add(v1::ROLE_DECODE, true);
  small.hello.set_blocks_total(10);
  WorkerEntry& large = Add(v1::ROLE_DECODE, true);
  large.hello.set_blocks_total(20);
  large.attempts = 5;
  need.total_tokens_max = 170;
  EXPECT_EQ(Choose()->decode, large.id);
  need.total_tokens_max = 160;

  EXPECT_EQ(Choose()->decode, small.id);
}

TEST_F(PlacementTest, WhatNoKnownWorkerCanHoldIsRefusedWithTheNumbers) {
  EXPECT_TRUE(CheckFits(workers, need).ok()) << "nobody is known: somebody large may come";
  WorkerEntry& d = Add(v1::ROLE_DECODE);
  d.hello.set_blocks_total(10);
  need.total_tokens_max = 160;
  EXPECT_TRUE(CheckFits(workers, need).ok());
  EXPECT_EQ(KvTokensMax(d), 160u);
  d.hello.mutable_model()->clear_block_tokens();
  EXPECT_EQ(KvTokensMax(d), UINT32_MAX) << "it does not say of what size";
  d.hello.mutable_model()->set_block_tokens(16);
  need.total_tokens_max = 161;
  EXPECT_EQ(CheckFits(workers, need).message(),
            "max_tokens: prompt and answer may grow to 161 tokens, but the largest KV cache of a "
            "decode worker holds 160");

  WorkerEntry& larger = Add(v1::ROLE_DECODE);
  larger.hello.set_blocks_total(11);
  larger.state = WorkerState::kLost;
  EXPECT_TRUE(CheckFits(workers, need).ok()) << "it may come back";
  larger.state = WorkerState::kRefused;
  EXPECT_FALSE(CheckFits(workers, need).ok());
}

// After the router's start: refusing is final, and the large one is only late.
TEST_F(PlacementTest, WorkerThatHasNeverConnectedMayBeLarge) {
  WorkerEntry& d = Add(v1::ROLE_DECODE);
  d.hello.set_blocks_total(10);
  need.total_tokens_max = 161;
  EXPECT_FALSE(CheckFits(workers, need).ok());
  WorkerEntry& late = *workers.Find(workers.Add("late", v1::ROLE_DECODE));
  EXPECT_TRUE(CheckFits(workers, need).ok());

  late.state = WorkerState::kRefused;
  EXPECT_FALSE(CheckFits(workers, need).ok());
}

TEST_F(PlacementTest, WhatReadyWorkersCouldTakeIfTheyWereIdle) {
  EXPECT_FALSE(ReadyCouldTake(workers, need));
  WorkerEntry& d = Add(v1::ROLE_DECODE);
  d.hello.set_blocks_total(10);
  d.attempts = 100;
  need.total_tokens_max = 160;
  EXPECT_FALSE(ReadyCouldTake(workers, need)) << "nobody computes the prompt";
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  EXPECT_TRUE(ReadyCouldTake(workers, need));
  p.hello.set_blocks_total(6);
  EXPECT_FALSE(ReadyCouldTake(workers, need)) << "100 tokens take 7 blocks";
  d.hello.set_local_prefill(true);
  EXPECT_TRUE(ReadyCouldTake(workers, need));
  need.total_tokens_max = 161;
  EXPECT_FALSE(ReadyCouldTake(workers, need));

  p.hello.set_blocks_total(7);
  d.state = WorkerState::kLost;
  need.first_token_only = true;
  EXPECT_TRUE(ReadyCouldTake(workers, need));
}

TEST_F(PlacementTest, APromptThatNoPrefillWorkerHoldsNeedsADecodeWorkerThatPrefills) {
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  p.hello.set_blocks_total(6);
  WorkerEntry& d = Add(v1::ROLE_DECODE);
  Connect(p, d);
  need.total_tokens_max = 120;
  EXPECT_FALSE(Choose().has_value());
  EXPECT_EQ(CheckFits(workers, need).message(),
            "prompt: 100 tokens, but the largest KV cache of a prefill worker holds 96");
  d.hello.set_local_prefill(true);

  EXPECT_TRUE(CheckFits(workers, need).ok());
  EXPECT_EQ(Choose()->decode, d.id);
  EXPECT_FALSE(Choose()->prefill.has_value());
}

TEST_F(PlacementTest, ADecodeWorkerThatAlwaysPrefillsWaitsForNobody) {
  WorkerEntry& p = Add(v1::ROLE_PREFILL);
  WorkerEntry& d = Add(v1::ROLE_DECODE, true);
  Connect(p, d);
  p.prefill_tokens = 1000;
  EXPECT_FALSE(Choose().has_value());
  d.hello.set_local_prefill_always(true);

  EXPECT_EQ(Choose()->decode, d.id);
  EXPECT_FALSE(Choose()->prefill.has_value());
}

}  // namespace
}  // namespace baton
