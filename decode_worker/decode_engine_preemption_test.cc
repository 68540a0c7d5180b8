// Decode engines with too few blocks: who gives way comes back with the same tokens.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "decode_worker/testing/decode_engine_harness.h"

namespace baton {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;
using testing::ElementsAreArray;

// Goal: pressure on the pool changes when tokens come, never which.
// Method: more sequences than the pool can hold at full length, against the oracle.
// Parameter: places in the swap space: none, too few, enough.
class SwapTest : public testing::TestWithParam<uint32_t> {};

TEST_P(SwapTest, PreemptedSequencesContinueWithTheSameTokens) {
  Harness harness(/*blocks=*/14, 16, /*model_window=*/0, /*swap_blocks=*/GetParam());
  for (uint64_t request = 1; request <= 4; ++request) {
    harness.Admit(GreedyWork(request, CountingPrompt(5, static_cast<TokenId>(20 * request)), 30),
                  true);
    ASSERT_TRUE(harness.last.has_admitted()) << harness.last.DebugString();
  }

  harness.RunAll();

  EXPECT_GT(harness.engine.stats().preempted, 0u);
  for (uint64_t request = 1; request <= 4; ++request) {
    EXPECT_THAT(harness.requests[request].tokens,
                ElementsAreArray(
                    FakeContinuation(CountingPrompt(5, static_cast<TokenId>(20 * request)), 30)));
    EXPECT_TRUE(harness.requests[request].finished);
  }
  EXPECT_TRUE(harness.engine.idle());
  EXPECT_EQ(harness.engine.stats().swapped_out > 0, GetParam() > 0);
  EXPECT_EQ(harness.engine.stats().swapped_out, harness.engine.stats().swapped_in);
  if (GetParam() == 64) {
    EXPECT_EQ(harness.engine.stats().swapped_out, harness.engine.stats().preempted);
    EXPECT_EQ(harness.engine.stats().prompt_tokens, 4 * 5u) << "something was computed again";
  }
  EXPECT_EQ(harness.engine.Load().swap_blocks_used(), 0u);
}

INSTANTIATE_TEST_SUITE_P(Blocks, SwapTest, testing::Values(0u, 5u, 64u));

// Goal: the swap space is used where that is sooner than to compute again, by what was measured.
// Method: a clock that takes as long as the test says for everything in a step that preempts: a
// copy, above all.
class SwapRateTest : public testing::TestWithParam<bool> {};

TEST_P(SwapRateTest, SequencesSwapWhereThatIsSooner) {
  const bool slow = GetParam();
  Harness harness(/*blocks=*/14, 16, /*model_window=*/0, /*swap_blocks=*/64);
  uint64_t preempted_before = 0;
  harness.clock = [&] {
    const bool preempts = harness.engine.stats().preempted > preempted_before;
    const Duration copy = slow ? milliseconds(100) : microseconds(1);
    return harness.fixture.now += preempts ? copy : microseconds(100);
  };
  for (uint64_t request = 1; request <= 4; ++request) {
    harness.Admit(GreedyWork(request, CountingPrompt(5, static_cast<TokenId>(20 * request)), 30),
                  true);
  }

  while (harness.engine.HasWork()) {
    preempted_before = harness.engine.stats().preempted;
    ASSERT_TRUE(harness.engine.Step(harness.fixture.now));
    harness.Listen();
  }

  const EngineStats& stats = harness.engine.stats();
  ASSERT_GT(stats.preempted, 1u);
  EXPECT_EQ(stats.swapped_out, slow ? 1 : stats.preempted);
}

INSTANTIATE_TEST_SUITE_P(Copies, SwapRateTest, testing::Bool(), [](const auto& copies) {
  return std::string(copies.param ? "Slow" : "Fast");
});

TEST(DecodeEngineTest, CancelledSequenceLeavesTheSwapSpace) {
  Harness harness(/*blocks=*/14, 16, /*model_window=*/0, /*swap_blocks=*/64);
  for (uint64_t request = 1; request <= 4; ++request) {
    harness.Admit(GreedyWork(request, CountingPrompt(5, static_cast<TokenId>(20 * request)), 30),
                  true);
  }
  while (harness.engine.Load().swap_blocks_used() == 0) {
    ASSERT_TRUE(harness.engine.Step(harness.fixture.now));
  }

  for (uint64_t request = 1; request <= 4; ++request) harness.Cancel(request);

  EXPECT_EQ(harness.engine.Load().swap_blocks_used(), 0u);
  EXPECT_EQ(harness.engine.Load().swap_blocks_total(), 64u);
  EXPECT_TRUE(harness.engine.idle());
}

// The same sequences, of which each needs three blocks at most.
TEST(DecodeEngineTest, WindowSparesPreemption) {
  Harness harness(/*blocks=*/14, /*sequences_max=*/16, /*model_window=*/5);
  for (uint64_t request = 1; request <= 4; ++request) {
    harness.Admit(GreedyWork(request, CountingPrompt(5, static_cast<TokenId>(20 * request)), 30),
                  true);
    ASSERT_TRUE(harness.last.has_admitted()) << harness.last.DebugString();
  }

  harness.RunAll();

  EXPECT_EQ(harness.engine.stats().preempted, 0u);
  for (uint64_t request = 1; request <= 4; ++request) {
    EXPECT_THAT(harness.requests[request].tokens,
                ElementsAreArray(FakeContinuation(
                    CountingPrompt(5, static_cast<TokenId>(20 * request)), 30, 97, 5)));
  }
}

// Goal: what a sequence computes after it came back without the blocks behind its window is cached
// under its true prefix: a block that is found under its own tokens alone would be taken for the
// beginning of some prompt.
TEST(DecodeEngineTest, SwappedSequenceWithAWindowLeavesNoFalsePrefixes) {
  constexpr uint32_t kWindow = 14;
  Harness harness(/*blocks=*/17, 16, kWindow, /*swap_blocks=*/64);
  harness.fixture.starting_model
      .StartNoSteps();  // They hold a block more at times: nobody would give way.
  std::map<uint64_t, std::vector<TokenId>> prompts;
  const auto step = [&] {
    ASSERT_TRUE(harness.engine.Step(harness.fixture.now));
    harness.Listen();
    for (const auto& [request, prompt] : prompts) {
      std::vector<TokenId> stream = prompt;
      const std::vector<TokenId>& tokens = harness.requests[request].tokens;
      stream.insert(stream.end(), tokens.begin(), tokens.end());
      for (size_t begin = 4; begin + 4 <= stream.size(); begin += 4) {
        const auto hashes = ChainHashes(std::span<const TokenId>(stream).subspan(begin, 4), 4);
        EXPECT_EQ(harness.fixture.pool.PeekPrefix(hashes), 0u);
      }
    }
  };

  const auto admit = [&](uint64_t request, int priority) {
    prompts[request] = CountingPrompt(5, static_cast<TokenId>(20 * request));
    v1::Work work = GreedyWork(request, prompts[request], 50);
    work.set_priority(priority);
    harness.Admit(work, /*local=*/true);
    ASSERT_TRUE(harness.last.has_admitted()) << harness.last.DebugString();
  };

  // The ones that must give way have left their prompts behind.
  for (uint64_t request = 1; request <= 3; ++request) admit(request, /*priority=*/0);
  while (harness.requests[1].tokens.size() < 28) step();
  admit(4, /*priority=*/1);
  while (harness.engine.HasWork()) step();

  EXPECT_GT(harness.engine.stats().swapped_in, 0u);
  for (const auto& [request, prompt] : prompts) {
    EXPECT_THAT(harness.requests[request].tokens,
                ElementsAreArray(FakeContinuation(prompt, 50, 97, kWindow)));
  }
}

// Goal: under any pressure on the pool everybody who was let in gets everything.
// Method: random arrivals of local prompts of random priority at a pool that holds a few of them;
// every other time the model has a window; the swap space has no place, few or many.
class PressureTest : public testing::TestWithParam<uint32_t> {};

TEST_P(PressureTest, NobodyStarves) {
  std::mt19937 random(GetParam());
  const auto below = [&random](uint32_t bound) { return static_cast<uint32_t>(random() % bound); };
  Harness harness(/*blocks=*/14, /*sequences_max=*/6, /*model_window=*/GetParam() % 2 * 17,
                  /*swap_blocks=*/GetParam() % 3 * 6);
  std::map<uint64_t, v1::Work> admitted;
  for (uint64_t request = 1; request <= 30; ++request) {
    v1::Work work = GreedyWork(
        request, CountingPrompt(1 + below(20), static_cast<TokenId>(request)), 1 + below(30));
    work.set_priority(static_cast<int>(below(3)));
    harness.Admit(work, /*local_prefill=*/true);
    if (harness.last.has_admitted()) admitted[request] = work;
    for (uint32_t step = below(12); step > 0 && harness.engine.HasWork(); --step) {
      ASSERT_TRUE(harness.engine.Step(harness.fixture.now)) << "nobody can go on";
      harness.Listen();
    }
  }

  harness.RunAll();

  for (const auto& [request, work] : admitted) {
    const std::vector<TokenId> prompt(work.tokens().begin(), work.tokens().end());
    EXPECT_TRUE(harness.requests[request].finished) << "request " << request;
    EXPECT_THAT(harness.requests[request].tokens,
                ElementsAreArray(FakeContinuation(
                    prompt, work.total_tokens_max() - work.prompt_tokens(), 97, harness.window)));
  }
  EXPECT_TRUE(harness.engine.idle());
}

INSTANTIATE_TEST_SUITE_P(Seeds, PressureTest, testing::Range(0u, 100u));

}  // namespace
}  // namespace baton
