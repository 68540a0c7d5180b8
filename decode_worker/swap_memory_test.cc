// Goal: a swap space that was asked for is there or is an error; one that was not may be missing.
// Method: a device that claims to be a GPU, and pins memory or does not.
#include "decode_worker/swap_memory.h"

#include <gtest/gtest.h>

#include "common/device/testing/guarded_device.h"

namespace baton {
namespace {

// Blocks of 1 MiB.
constexpr KvLayout kLayout = {.layers = 8, .kv_heads = 16, .head_dim = 64, .block_tokens = 16};
constexpr uint64_t kGiB = uint64_t{1} << 30;

class SwapMemoryTest : public testing::Test {
 protected:
  GuardedDevice gpu_;
  const std::unique_ptr<Device> cpu_ = MakeHostDevice();
  const std::unique_ptr<KvArena> on_gpu_ = KvArena::Create(gpu_, kLayout, 4).value();
  const std::unique_ptr<KvArena> on_cpu_ = KvArena::Create(*cpu_, kLayout, 4).value();
};

TEST_F(SwapMemoryTest, IsOfTheSizeThatWasAskedFor) {
  for (const KvArena* arena : {on_gpu_.get(), on_cpu_.get()}) {
    EXPECT_EQ(MakeSwapSpace(*arena, kGiB).value()->blocks_total(), 1024u);
    EXPECT_EQ(MakeSwapSpace(*arena, 0).value(), nullptr);
  }
}

TEST_F(SwapMemoryTest, UnlessSomethingIsSaidOnlyAGpuHasOne) {
  EXPECT_EQ(MakeSwapSpace(*on_gpu_, std::nullopt).value()->blocks_total(), 4096u);
  EXPECT_EQ(MakeSwapSpace(*on_cpu_, std::nullopt).value(), nullptr);
}

TEST_F(SwapMemoryTest, WhatCannotBePinnedIsAnErrorOnlyIfItWasAskedFor) {
  gpu_.FailPinning(absl::ResourceExhaustedError("memory cannot be pinned"));

  EXPECT_EQ(MakeSwapSpace(*on_gpu_, kGiB).status().code(), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(MakeSwapSpace(*on_gpu_, std::nullopt).value(), nullptr);
}

}  // namespace
}  // namespace baton
