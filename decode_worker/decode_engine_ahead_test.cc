// Goal: steps are started ahead where they can be, whatever happens before they end: what a device
// may still write is nobody else's, and nobody is refused for want of it.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstdint>
#include <vector>

#include "decode_worker/testing/decode_engine_harness.h"

namespace baton {
namespace {

using testing::ElementsAreArray;
using testing::IsEmpty;
using testing::SizeIs;

// Seeds, which draw whether a step is computed at once or late.
class StepsAheadTest : public testing::TestWithParam<uint64_t> {
 protected:
  // Harness that starts steps.
  struct Started : Harness {
    Started(uint64_t seed, uint32_t blocks) : Harness(blocks) {
      fixture.starting_model.StartSteps(seed);
    }
    void Step() {
      ASSERT_TRUE(engine.Step(fixture.now));
      fixture.pool.CheckInvariants();
      Listen();
    }
  };
};

TEST_P(StepsAheadTest, AllButTheFirstOfASequencesSteps) {
  Started harness(GetParam(), 64);
  harness.Admit(GreedyWork(1, CountingPrompt(6), 20), /*local=*/true);

  harness.RunAll();

  EXPECT_THAT(harness.requests[1].tokens,
              ElementsAreArray(FakeContinuation(CountingPrompt(6), 20)));
  EXPECT_EQ(harness.engine.stats().steps, 20u);
  EXPECT_EQ(harness.engine.stats().steps_ahead, 18u) << "all but the prompt and the one behind it";
}

TEST_P(StepsAheadTest, WhoComesMeanwhileIsInTheNextOne) {
  Started harness(GetParam(), 64);
  harness.Admit(GreedyWork(1, CountingPrompt(6), 30), /*local=*/true);
  for (int step = 0; step < 10; ++step) harness.Step();
  harness.Admit(GreedyWork(2, CountingPrompt(9, 50), 20), /*local=*/false);
  harness.Fill(harness.fixture.transfers.opened.at(0), CountingPrompt(9, 50));

  harness.Step();
  EXPECT_THAT(harness.requests[2].tokens, SizeIs(1)) << "the token that came with the KV";
  harness.Step();
  EXPECT_THAT(harness.requests[2].tokens, SizeIs(2));
  harness.RunAll();

  EXPECT_THAT(harness.requests[1].tokens,
              ElementsAreArray(FakeContinuation(CountingPrompt(6), 30)));
  EXPECT_THAT(harness.requests[2].tokens,
              ElementsAreArray(FakeContinuation(CountingPrompt(9, 50), 20)));
  EXPECT_EQ(harness.engine.stats().steps_ahead, harness.engine.stats().steps - 2);
}

// The KV of another request lands in the pool's only free blocks before the device is done.
TEST_P(StepsAheadTest, BlocksOfOneThatHasEndedAreWrittenByNobodyElse) {
  Started harness(GetParam(), /*blocks=*/4);
  // 11 tokens are computed after the fifth step, and the 12th is being written.
  harness.Admit(GreedyWork(1, CountingPrompt(6), 9), /*local=*/true);
  for (int step = 0; step < 6; ++step) harness.Step();
  harness.Cancel(1);
  const std::vector<TokenId> prompt = CountingPrompt(12, 40);

  harness.Admit(GreedyWork(2, prompt, 4), /*local=*/false);
  ASSERT_TRUE(harness.last.has_admitted()) << harness.last.DebugString();
  harness.Fill(harness.fixture.transfers.opened.at(0), prompt);
  harness.RunAll();

  EXPECT_THAT(harness.requests[2].tokens, ElementsAreArray(FakeContinuation(prompt, 4)));
  harness.QuiesceAll();
  EXPECT_EQ(harness.fixture.pool.counts().in_use, 0u);
}

// A sequence that is told to move when it has one more token has no part in the step after that.
TEST_P(StepsAheadTest, OneThatWillMoveIsNotInTheNextOne) {
  Started harness(GetParam(), 64);
  harness.Admit(GreedyWork(1, CountingPrompt(6), 30), /*local=*/true);
  for (int step = 0; step < 6; ++step) harness.Step();
  ASSERT_THAT(harness.fixture.executor.started(), SizeIs(1));
  v1::Command command;
  command.mutable_migrate()->set_request(1);
  command.mutable_migrate()->mutable_ticket()->set_prompt_tokens(12);
  harness.engine.OnCommand(kRouter, command, harness.fixture.now);

  harness.Step();

  EXPECT_THAT(harness.fixture.transfers.begun, SizeIs(1));
  EXPECT_THAT(harness.fixture.executor.started(), IsEmpty());
}

INSTANTIATE_TEST_SUITE_P(Seeds, StepsAheadTest, testing::Range<uint64_t>(1, 9));

}  // namespace
}  // namespace baton
