// Goal: whatever breaks, clients see the streams of an undisturbed run, each ends once, and nothing
// is left over. Method: the first seeds of the simulation; `simulation` searches more of them.
#include <gtest/gtest.h>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "tests/simulation/simulated_cluster.h"

namespace baton {
namespace {

// The sanitizers see as much in fewer.
constexpr uint64_t kSeeds = 4000 / BATON_TEST_SLOWNESS;

TEST(SimulationTest, NoRuleIsViolated) {
  Happened happened;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    Record record(0);
    happened.Add(SimulatedCluster(seed, record).Run());
    ASSERT_FALSE(record.violation().has_value())
        << *record.violation() << "; replay it with bin/simulation --seed " << seed;
  }
  // It would also pass if nothing ever worked, or nothing ever broke.
  EXPECT_GT(happened.completed, happened.requests / 2);
  EXPECT_GT(happened.retries, happened.requests / 10);
  EXPECT_GT(happened.moves, 0u);
  EXPECT_GT(happened.transfers_acked, 0u);
  EXPECT_GT(happened.transfers_failed, 0u);
  EXPECT_GT(happened.force_closes, 0u);
  EXPECT_GT(happened.checksum_mismatches, 0u);
  EXPECT_GT(happened.messages_refused, 0u);
  EXPECT_GT(happened.preempted, 0u);
  EXPECT_GT(happened.swapped, 0u);
  EXPECT_GT(happened.steps_ahead, 0u);
}

TEST(SimulationReplayTest, ASeedTellsTheSameStoryTwice) {
  for (uint64_t seed = 1; seed <= 50; ++seed) {
    Record first(200), second(200);
    SimulatedCluster(seed, first).Run();
    SimulatedCluster(seed, second).Run();
    EXPECT_EQ(absl::StrJoin(first.lines(), "\n"), absl::StrJoin(second.lines(), "\n")) << seed;
  }
}

}  // namespace
}  // namespace baton
