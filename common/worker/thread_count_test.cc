#include "common/worker/thread_count.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"

namespace baton {
namespace {

class ProcessorShareTest : public testing::Test {
 protected:
  ~ProcessorShareTest() override { std::filesystem::remove_all(mount_); }

  void Write(const std::string& path, const std::string& text) const {
    const std::filesystem::path file(mount_ + path);
    std::filesystem::create_directories(file.parent_path());
    std::ofstream(file) << text;
  }

  const std::string mount_ = absl::StrCat(testing::TempDir(), "cgroups", getpid());
};

TEST_F(ProcessorShareTest, IsTheLeastOnTheWayUp) {
  Write("/cpu.max", "max 100000\n");
  Write("/pods/cpu.max", "800000 100000\n");
  Write("/pods/one/cpu.max", "250000 100000\n");
  Write("/pods/other/cpu.max", "max 100000\n");

  EXPECT_EQ(ProcessorShare("0::/pods/one\n", mount_), 2.5);
  EXPECT_EQ(ProcessorShare("0::/pods/other\n", mount_), 8.0);
  EXPECT_EQ(ProcessorShare("0::/\n", mount_), std::nullopt);
}

TEST_F(ProcessorShareTest, OfAContainerThatSeesOnlyItsOwnGroup) {
  Write("/cpu.max", "400000 100000\n");

  EXPECT_EQ(ProcessorShare("0::/\n", mount_), 4.0);
  EXPECT_EQ(ProcessorShare("0::/kubepods/burstable/pod7\n", mount_), 4.0);
}

TEST_F(ProcessorShareTest, OfVersionOne) {
  Write("/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  Write("/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  Write("/cpu,cpuacct/docker/one/cpu.cfs_quota_us", "150000\n");
  Write("/cpu,cpuacct/docker/one/cpu.cfs_period_us", "50000\n");
  const std::string own = "5:memory:/docker/one\n4:cpu,cpuacct:/docker/one\n0::/\n";

  EXPECT_EQ(ProcessorShare(own, mount_), 3.0);
}

TEST_F(ProcessorShareTest, WhatCannotBeReadIsNoLimit) {
  Write("/cpu.max", "0 0 0\n");

  EXPECT_EQ(ProcessorShare("", mount_), std::nullopt);
  EXPECT_EQ(ProcessorShare("rubbish\n0::\n:::\n", mount_), std::nullopt);
  EXPECT_EQ(ProcessorShare("0::/\n", mount_ + "/nowhere"), std::nullopt);
}

TEST(UsableThreadsTest, FollowsTheProcessorsThatAreAllowed) {
  cpu_set_t before;
  ASSERT_EQ(sched_getaffinity(0, sizeof(before), &before), 0);
  EXPECT_LE(UsableThreads(), static_cast<uint32_t>(CPU_COUNT(&before)));
  cpu_set_t one;
  CPU_ZERO(&one);
  for (size_t i = 0; CPU_COUNT(&one) == 0; ++i) {
    if (CPU_ISSET(i, &before)) CPU_SET(i, &one);
  }

  ASSERT_EQ(sched_setaffinity(0, sizeof(one), &one), 0);
  EXPECT_EQ(UsableThreads(), 1u);
  ASSERT_EQ(sched_setaffinity(0, sizeof(before), &before), 0);
}

}  // namespace
}  // namespace baton
