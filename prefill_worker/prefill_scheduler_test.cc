#include "prefill_worker/prefill_scheduler.h"

#include <gtest/gtest.h>

namespace baton {
namespace {

const PrefillScheduler::Reserve kAlways = [](Sequence&) { return true; };

Sequence Prompt(uint32_t tokens, uint64_t arrival, int priority = 0) {
  Sequence sequence;
  sequence.tokens.resize(tokens);
  sequence.prompt_tokens = tokens;
  sequence.arrival = arrival;
  sequence.priority = priority;
  return sequence;
}

TEST(PrefillSchedulerTest, ALongPromptIsCutIntoChunks) {
  Sequence prompt = Prompt(10, 0);
  PrefillScheduler scheduler;
  scheduler.Add(&prompt);

  std::vector<StepItem> plan = scheduler.Plan(4, kAlways);
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].count, 4u);

  prompt.computed = 8;
  plan = scheduler.Plan(4, kAlways);
  EXPECT_EQ(plan[0].count, 2u);
}

TEST(PrefillSchedulerTest, ShortPromptsShareAStepInOrderOfArrival) {
  Sequence first = Prompt(3, 1);
  Sequence second = Prompt(3, 2);
  PrefillScheduler scheduler;
  scheduler.Add(&second);
  scheduler.Add(&first);

  const std::vector<StepItem> plan = scheduler.Plan(5, kAlways);

  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].sequence, &first);
  EXPECT_EQ(plan[1].count, 2u);
}

TEST(PrefillSchedulerTest, PriorityGoesFirst) {
  Sequence early = Prompt(3, 1, 0);
  Sequence urgent = Prompt(3, 2, 5);
  PrefillScheduler scheduler;
  scheduler.Add(&early);
  scheduler.Add(&urgent);

  EXPECT_EQ(scheduler.Plan(1, kAlways)[0].sequence, &urgent);
}

TEST(PrefillSchedulerTest, NobodyOvertakesAPromptThatWaitsForBlocks) {
  Sequence big = Prompt(100, 1);
  Sequence small = Prompt(1, 2);
  PrefillScheduler scheduler;
  scheduler.Add(&big);
  scheduler.Add(&small);

  const auto plan = scheduler.Plan(50, [&](Sequence& s) { return &s != &big; });

  EXPECT_TRUE(plan.empty());
}

// What the first one waits for comes from the end of those that have started.
TEST(PrefillSchedulerTest, StartedPromptsGoOnWhileTheFirstWaitsForBlocks) {
  BlockPool pool(4);
  Sequence big = Prompt(100, 1);
  Sequence started = Prompt(8, 2);
  ASSERT_TRUE(ReserveBlocks(pool, /*block_tokens=*/4, 8, started).ok());
  Sequence small = Prompt(1, 3);
  PrefillScheduler scheduler;
  for (Sequence* sequence : {&big, &started, &small}) scheduler.Add(sequence);

  const auto plan = scheduler.Plan(50, [&](Sequence& s) { return &s != &big; });

  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].sequence, &started);
}

TEST(PrefillSchedulerTest, RemovedSequenceIsForgotten) {
  Sequence prompt = Prompt(3, 1);
  PrefillScheduler scheduler;
  scheduler.Add(&prompt);
  EXPECT_EQ(scheduler.queued_tokens(), 3u);

  scheduler.Remove(&prompt);

  EXPECT_TRUE(scheduler.empty());
  EXPECT_TRUE(scheduler.Plan(5, kAlways).empty());
}

}  // namespace
}  // namespace baton
