#include "common/kernels/thread_placement.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>
#include <vector>

namespace baton {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// As Linux numbers them: the first hardware threads of all cores, node after node, then the second
// ones in the same order.
std::vector<Processor> Machine(uint32_t nodes, uint32_t cores_per_node, uint32_t threads_per_core) {
  std::vector<Processor> processors;
  const uint32_t cores = nodes * cores_per_node;
  for (uint32_t id = 0; id < cores * threads_per_core; ++id) {
    processors.push_back({.id = id, .node = id % cores / cores_per_node, .core = id % cores});
  }
  return processors;
}

TEST(PlaceThreadsTest, OneThreadPerCoreBeforeTheirSiblings) {
  EXPECT_THAT(PlaceThreads(Machine(1, 2, 2), 3), ElementsAre(0, 1, 2));
  // Some systems number the hardware threads of a core consecutively.
  const std::vector<Processor> neighbours = {
      {.id = 0, .core = 0}, {.id = 1, .core = 0}, {.id = 2, .core = 2}, {.id = 3, .core = 2}};
  EXPECT_THAT(PlaceThreads(neighbours, 2), ElementsAre(0, 2));
  EXPECT_THAT(PlaceThreads(neighbours, 4), ElementsAre(0, 2, 1, 3));
}

TEST(PlaceThreadsTest, StaysOnOneNodeThatHasTheCores) {
  EXPECT_THAT(PlaceThreads(Machine(2, 4, 2), 4), ElementsAre(0, 1, 2, 3));
}

TEST(PlaceThreadsTest, TakesTheNodeWithTheMostUsableCores) {
  // A container that may use one core of node 0 and two of node 1.
  const std::vector<Processor> usable = {{.id = 3, .node = 0, .core = 3},
                                         {.id = 4, .node = 1, .core = 4},
                                         {.id = 5, .node = 1, .core = 5}};
  EXPECT_THAT(PlaceThreads(usable, 2), ElementsAre(4, 5));
  EXPECT_THAT(PlaceThreads(usable, 3), ElementsAre(4, 5, 3));
}

TEST(PlaceThreadsTest, DealsEvenlyOverTheNodesThatItNeedsAndKeepsTheirThreadsTogether) {
  EXPECT_THAT(PlaceThreads(Machine(2, 4, 2), 6), ElementsAre(0, 1, 2, 4, 5, 6));
  EXPECT_THAT(PlaceThreads(Machine(4, 4, 1), 6), ElementsAre(0, 1, 2, 4, 5, 6));
}

TEST(PlaceThreadsTest, UsesSiblingsOnAllNodesWhenCoresRunOut) {
  EXPECT_THAT(PlaceThreads(Machine(2, 2, 2), 6), ElementsAre(0, 1, 4, 2, 3, 6));
}

TEST(PlaceThreadsTest, EveryProcessorOnceAndNoMore) {
  for (uint32_t count : {1u, 5u, 16u, 17u, 100u}) {
    const std::vector<uint32_t> placed = PlaceThreads(Machine(2, 4, 2), count);
    EXPECT_EQ(placed.size(), std::min(count, 16u));
    EXPECT_EQ(std::set<uint32_t>(placed.begin(), placed.end()).size(), placed.size());
  }
  EXPECT_THAT(PlaceThreads({}, 4), IsEmpty());
}

TEST(ParseProcessorListTest, ReadsWhatTheKernelWrites) {
  EXPECT_THAT(ParseProcessorList("0-2,8\n"), ElementsAre(0, 1, 2, 8));
  EXPECT_THAT(ParseProcessorList("5"), ElementsAre(5));
  EXPECT_THAT(ParseProcessorList(""), IsEmpty());
  EXPECT_THAT(ParseProcessorList("1,x"), ElementsAre(1));
  EXPECT_THAT(ParseProcessorList("0-4000000000"), IsEmpty());
}

TEST(UsableProcessorsTest, KnowsThisMachine) {
  const std::vector<Processor> usable = UsableProcessors();
  ASSERT_FALSE(usable.empty());
  for (const Processor& processor : usable) EXPECT_LE(processor.core, processor.id);
}

}  // namespace
}  // namespace baton
