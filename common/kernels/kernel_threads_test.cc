#include "common/kernels/kernel_threads.h"

#include <gtest/gtest.h>

#include <atomic>
#include <numeric>
#include <vector>

namespace baton {
namespace {

class KernelThreadsTest : public testing::TestWithParam<uint32_t> {};

TEST_P(KernelThreadsTest, RunsEveryTaskOnce) {
  KernelThreads threads(GetParam());
  for (uint32_t tasks : {0u, 1u, 2u, 3u, 7u, 100u}) {
    std::vector<int> runs(tasks, 0);

    threads.ParallelFor(tasks, [&](uint32_t task, uint32_t thread) {
      ASSERT_LT(thread, threads.count());
      ++runs[task];
    });

    EXPECT_EQ(std::accumulate(runs.begin(), runs.end(), 0), static_cast<int>(tasks));
    for (int count : runs) EXPECT_EQ(count, 1);
  }
}

// Goal: kernels that follow each other closely, or after a pause that lets the workers fall asleep,
// see each other's results. Method: each reads what the one before wrote; run it under
// ThreadSanitizer.
TEST_P(KernelThreadsTest, ResultsOfAKernelAreSeenByTheNext) {
  constexpr uint32_t kTasks = 16;
  KernelThreads threads(GetParam());
  std::vector<uint64_t> values(kTasks, 0);
  std::vector<uint64_t> next(kTasks, 0);

  for (int round = 0; round < 2000; ++round) {
    threads.ParallelFor(
        kTasks, [&](uint32_t task, uint32_t) { next[task] = values[(task + 1) % kTasks] + 1; });
    values.swap(next);
  }

  for (uint64_t value : values) EXPECT_EQ(value, 2000u);
}

TEST_P(KernelThreadsTest, ThreadNumbersAreNotShared) {
  KernelThreads threads(GetParam());
  std::vector<std::atomic<int>> inside(threads.count());

  threads.ParallelFor(500, [&](uint32_t, uint32_t thread) {
    EXPECT_EQ(inside[thread].fetch_add(1), 0);
    inside[thread].fetch_sub(1);
  });
}

TEST_P(KernelThreadsTest, EndsWithoutAnyWork) { KernelThreads threads(GetParam()); }

INSTANTIATE_TEST_SUITE_P(Counts, KernelThreadsTest, testing::Values(1, 2, 3, 4, 8));

}  // namespace
}  // namespace baton
